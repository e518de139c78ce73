"""What routes, pages and events do with builds: create, queue, approve, retry."""
