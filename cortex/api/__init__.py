"""HTTP resources, one small class per endpoint family."""
