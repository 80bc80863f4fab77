"""Messages and stubs generated from proto/ by scripts/gen_proto.py; not edited by hand."""
