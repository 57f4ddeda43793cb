"""Moves virtual buckets between shards while orders come in (docs/resharding.md, docs/adr/0041)."""
