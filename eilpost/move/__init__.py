"""Transfer of a queue from one log to another, for example from an embedded log to a Kafka cluster or back.

It uses the Log port only and decides nothing about mail: records are moved unchanged (attempts, last replies, due
times, holds, active deliveries) and partitioned by the shard counts of the target.
"""

# The protocol. The mover owns all router and delivery shards of the source and all router shards of the target, as an
# ordinary group member; so on Kafka a stale owner is fenced, the mover included. Then, in this order:
#
# 1. *Load*: the ids of the target's open deliveries and unread inputs; the active deliveries of the source.
# 2. *Inputs*: an unread `Accepted` is moved as it is. An unread `Attempted` is moved with its delivery, which stays
#    active, so that the target's router processes the report; an outdated report is dropped.
# 3. *Dispatches*: an unfinished `Dispatched` is moved with its delivery, content and number, then finished on the
#    source with an empty report, which the source ignores. An outdated one is only finished. Because the router's
#    shards are owned, nothing new is dispatched, and each delivery shard has an end.
# 4. *Waiting deliveries*, as they are; then the inputs again (the empty reports and late records).
#
# Every step moves *batches* of at most `BATCH` records, one at a time: a batch is written to the target, in one commit
# per target shard, and then removed from the source in one commit (`Settled` records and offsets of its inputs).
#
# | the mover dies | the batch is | the next run |
# |---|---|---|
# | before or between the target's commits | in the source; parts of it in both | writes what step 1 did not find |
# | before the source's commit | in both | writes nothing, removes it from the source |
# | before a dispatch is finished | in the target; a dispatch without a delivery | finishes the dispatch |
#
# So nothing is lost, and nothing is duplicated unless the source or the target is started before the move has ended.
# In that case one batch and the unfinished dispatches can be delivered twice. After an unconfirmed commit the mover
# releases all shards and starts again with step 1.
#
# Spooled content is copied to the target's spool before the batch is written, unless both logs use the same spool;
# copies of a killed run expire by age. The history of open messages is moved with the first record of the message; the
# history of closed messages is not moved.
