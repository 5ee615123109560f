"""The routers, one file each, registered by name."""
