"""The score cache: scores of prompts by a hash of their text, under the fingerprint of the bundle that gave them.

`MemoryCache` keeps entries in this process, `RedisCache` in a Redis or Valkey that services share, `TieredCache` asks
the one before the other. No text of a prompt is in a key or a value.
"""
