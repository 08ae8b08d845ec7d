"""Moves everything that is queued from one log to another: from the file of one machine to a cluster, or back.

Written against the Log port, so any log will do on either side. Nothing is decided about mail here: records are
moved as they are (attempts, last replies, due times, holds and who is in hand), and placed anew by the target's own
counts of shards. What becomes of them is for the target's router to say.

**The protocol.** The mover owns every router and delivery shard of the source and every router shard of the target,
as a member of their groups like any other; so on Kafka a stale owner, or it itself, is fenced. Then, in this order:

1. *What is there*: the ids of the target's open lines and unread inputs. Of the source: the lines in hand.
2. *Inputs*: an unread `Accepted` goes as it is. An unread `Attempted` goes together with its line, which stays in hand,
   so that the target's router judges the report; one that its own router would ignore is dropped.
3. *Dispatches*: an unfinished `Dispatched` goes together with its line, content and number; then it is finished with an
   empty report, which no line answers to. One without a line in hand is out of date, and only finished. The router's
   shards are ours, so nobody dispatches meanwhile, and each delivery shard says when it has given all there is.
4. *Lines that wait*, as they are; then the inputs once more (the empty reports, and what came late).

Everything moves in one way: a *batch* is written to the target, in one commit for each of its shards; only then is it
removed from the source, in one commit (`Settled` for its lines, the marks of its inputs). One batch is under way at a
time, at most `BATCH` records.

| the mover dies | the batch is | the next run |
|---|---|---|
| before the target's commits, or between them | in the source; parts of it in both | writes what step 1 did not find |
| before the source's commit | in both | writes nothing, removes it from the source |
| before a dispatch is finished | in the target; a dispatch without a line | finishes the dispatch |

So nothing is lost at any instant, and nothing comes twice, as long as neither side is started before the move has
ended. If one is started in between, what can come twice is that one batch, and dispatches that were not finished yet.
A commit that was not confirmed is a death too: the mover lets everything go and begins again with step 1.

Spooled content is read from the source's spool and kept in the target's before the batch is written, unless both use
the same. What a killed run kept for nothing expires by age. The history of what is still open goes along, in the commit
of the message's first record; that of closed messages stays.
"""
