"""What a user wrote: files, options and names found, read, checked and explained; no model, no trainer."""
