"""The tables that conversations are kept in, the same for every database."""

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

# Of the tables as they are here; written into the database, and looked at before it is used.
VERSION = 1

metadata = MetaData()
# SQLite numbers rows by itself only in a column of this very type.
_NUMBER = BigInteger().with_variant(Integer(), "sqlite")

schema = Table("conversations_schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

conversations = Table(
    "conversations",
    metadata,
    # Never given twice, also after a deletion: tokens begin with it.
    Column("id", _NUMBER, primary_key=True, autoincrement=True),
    Column("principal", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("conversation_id", Text, nullable=False),
    # How often its lease was given, and to whom last.
    Column("leases", BigInteger, nullable=False),
    Column("holder", Text, nullable=False),
    Column("first_sequence", BigInteger, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    # Of events and state.
    Column("bytes", BigInteger, nullable=False),
    Column("state_version", BigInteger, nullable=False),
    Column("state_bytes", BigInteger, nullable=False),
    # Messages that have not ended.
    Column("unended", Integer, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("changed_ns", BigInteger, nullable=False),
    UniqueConstraint("principal", "agent", "conversation_id", name="conversations_key"),
    Index("conversations_of_principal", "principal", "agent", "changed_ns", "id"),
    Index("conversations_of_agent", "agent", "changed_ns", "id"),
    sqlite_autoincrement=True,
)

# Apart from the heads, which are written with every append.
states = Table(
    "conversation_states",
    metadata,
    Column("conversation", BigInteger, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
)

messages = Table(
    "conversation_messages",
    metadata,
    Column("conversation", BigInteger, nullable=False),
    Column("message_id", Text, nullable=False),
    # uapi.v1.MessageStatus.
    Column("status", SmallInteger, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("first_sequence", BigInteger, nullable=False),
    # Of its end; 0 until then.
    Column("last_sequence", BigInteger, nullable=False),
    PrimaryKeyConstraint("conversation", "message_id"),
    Index(
        "conversation_messages_unended",
        "conversation",
        "first_sequence",
        sqlite_where=text("last_sequence = 0"),
        postgresql_where=text("last_sequence = 0"),
    ),
)

events = Table(
    "conversation_events",
    metadata,
    Column("conversation", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("message_id", Text, nullable=False),
    # Of the event as it is told, wherever it lies.
    Column("size", Integer, nullable=False),
    # A serialized uapi.v1.Event; with a blob, what is to be added to the one there.
    Column("body", LargeBinary, nullable=False),
    # SHA-256 of the blob that has the rest; NULL without one.
    Column("blob", LargeBinary),
    PrimaryKeyConstraint("conversation", "sequence"),
    Index(
        "conversation_events_with_blobs",
        "conversation",
        "sequence",
        sqlite_where=text("blob IS NOT NULL"),
        postgresql_where=text("blob IS NOT NULL"),
    ),
)

# Only where blobs are not files.
blobs = Table(
    "conversation_blobs",
    metadata,
    Column("conversation", BigInteger, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    PrimaryKeyConstraint("conversation", "hash"),
)
