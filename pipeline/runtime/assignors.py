"""Which member of a group reads what; aiokafka asks one of them, and tells the others."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata


class OldestTakesAll(RoundRobinPartitionAssignor):  # type: ignore[misc]
    """One member reads everything, the others stand by: a document's rows lie in partitions of many topics.

    The member that has been in the group longest keeps it, so a newcomer takes nothing away; one that the group has
    put out meanwhile, as it does with one that was stopped, comes back as the youngest.
    """

    name = "oldest-takes-all"
    who = ""
    """This process, as the others are to name it."""
    reader = ""
    """The process that reads, as of the last assignment."""
    member_since = time.time_ns()

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), f"{cls.member_since} {cls.who}".encode())

    @classmethod
    def assign(
        cls, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        said = {m: (metadata.user_data or b"0").decode().partition(" ") for m, metadata in members.items()}
        oldest = min(members, key=lambda m: (int(said[m][0]), m))
        reader = said[oldest][2].encode()
        topics = sorted(
            (topic, sorted(cluster.partitions_for_topic(topic) or ())) for topic in members[oldest].subscription
        )
        return {
            member: ConsumerProtocolMemberAssignment(cls.version, topics if member == oldest else [], reader)
            for member in members
        }

    @classmethod
    def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
        cls.reader = (assignment.user_data or b"").decode()


class HomeFirst(RoundRobinPartitionAssignor):  # type: ignore[misc]
    """Partitions are shared out: each has a home, the member with its number; the others take in those whose home is away.

    So a member that comes back gets its own again, and nobody else's partitions move when one goes.
    """

    name = "home-first"
    number = 1
    """This member's, from 1 to `homes`; those above take in only."""
    homes = 1

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), str(cls.number).encode())

    @classmethod
    def assign(
        cls, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        numbers = {member: int(metadata.user_data or b"1") for member, metadata in members.items()}
        present = sorted(members, key=lambda member: (numbers[member], member))
        at_home = {numbers[member]: member for member in reversed(present)}
        found: dict[str, dict[str, list[int]]] = {member: {} for member in members}
        topics = {topic for metadata in members.values() for topic in metadata.subscription}
        turn = 0
        for topic in sorted(topics):
            partitions = sorted(cluster.partitions_for_topic(topic) or ())
            # a topic with one for each home gives each its own; smaller ones take turns
            turn = 0 if len(partitions) == cls.homes else turn
            for partition in partitions:
                member = at_home.get(turn % cls.homes + 1) or present[turn % len(present)]
                found[member].setdefault(topic, []).append(partition)
                turn += 1
        return {
            member: ConsumerProtocolMemberAssignment(cls.version, sorted(of.items()), b"")
            for member, of in found.items()
        }
