"""From text to a small adapter that knows it: studying, training, scoring, and replaying any of it.

The only part of `memgrid` that imports torch while being imported; everything else imports it inside functions.
Hosts compute with it and the coordinator's engine replays with it, so both run one code.
"""
