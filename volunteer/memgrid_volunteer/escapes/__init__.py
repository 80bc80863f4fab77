"""What a worker gone bad could try, and a trial that shows what becomes of it on this machine."""
