"""Feed every parser of strangers' bytes what strangers may send, by the thousand."""
