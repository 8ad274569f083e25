"""How darkroom is set up and run; nothing in here is imported by the services."""
