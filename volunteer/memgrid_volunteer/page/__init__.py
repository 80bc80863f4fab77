"""The volunteer's own page: served to this machine alone, and only to who has its key."""
