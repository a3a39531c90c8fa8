"""`p2l votes ask`: asks the deployments of a LiteLLM configuration, has the answers judged, and writes votes."""
