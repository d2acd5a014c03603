"""The domains that stand on the shared backbone; none imports another."""
