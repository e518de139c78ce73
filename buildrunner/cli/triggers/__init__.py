"""`buildrunner triggers`, `schedules` and `deliveries`: what starts builds on a server."""
