"""What happens to workers, pure: states, events, instructions, the machine. No clock, socket or pid."""
