"""The HTTP service: routes, limits, messages, and the process that runs them."""
