"""Real FSDP shards, saved by real processes as verl saves them."""
