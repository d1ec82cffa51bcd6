"""`make soak`: everything breaks for a quarter of an hour, and no job may pay for it.

One real daemon works for several tenants on a real Docker Engine and real registries, while it is killed (at random and
at every failpoint), restarted, and left without its engine or its registries. Its clients keep what was acknowledged,
and repeat what was not. In the end all that broke is whole again; once the queue is empty, the database, the
registries, the engine and the state folder are held against what the clients were promised::

    make soak                                            15 minutes, 300 kills
    make soak ARGS="--minutes 5 --kills 100 --seed 7"    shorter; the same orders and the same outages each time
    make soak ARGS="--keep /var/tmp/soak"                keep the log and the database for a look afterwards

`load` is the clients, `outages` what breaks, `verdict` the judgement and its table. The seed decides what is asked for
and what breaks; which of them meet is left to time.

A job that was the only one at work in three crashes in a row is guilty by the daemon's own rule, and random kills would
bring that about sooner or later. So a job that is one crash away from it is let finish before the next kill.
"""
