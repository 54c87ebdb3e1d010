"""The process that renders, tokenises and checks requests; it owns no device."""
