"""Logs of builds that run or ran: kept in `files`, shown by `console`."""
