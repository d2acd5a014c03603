"""The sub-commands of `titans-seq` that belong to no domain."""
