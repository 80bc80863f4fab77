"""The volunteer as a service of its user: started with the machine, watched, restarted, and not for ever."""
