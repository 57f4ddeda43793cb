"""Dead letters, for staff: messages that workers gave up."""
