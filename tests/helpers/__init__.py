"""What several test files share: servers, stubs of providers, bundles, votes."""
