"""Who may use how much of a device, pure."""
