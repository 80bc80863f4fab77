"""What an attacker tries against a running coordinator, over real gRPC and HTTP; docs/attacks.md lists it."""
