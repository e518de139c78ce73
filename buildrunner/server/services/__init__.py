"""Operations on builds, shared by routes, pages and events: create, queue, approve, retry.

Start with `builds`. `admission` checks a new build; `trigger_queue` queues what triggers make.
"""
