"""The page that decodes in the browser."""
