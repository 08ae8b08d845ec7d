"""Transfer of a queue from one log to another, for example from an embedded log to a Kafka cluster or back.

It uses the Log port only and decides nothing about mail: records are moved unchanged (attempts, last replies, due
times, holds, active deliveries) and partitioned by the shard counts of the target. docs/migrate.md, "How it works", has
the steps, and what a run finds that follows a killed one.
"""
