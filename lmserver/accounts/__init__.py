"""Who has an account here, and what their devices keep with us. No HTTP."""
