"""Out of one machine: sequence parallelism, data parallelism (DDP, FSDP2), sharded checkpoints. docs/scaling.md says when to take what."""
