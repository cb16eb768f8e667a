"""Keys in a SQL database, by way of SQLAlchemy Core: SQLite, PostgreSQL, MariaDB and MySQL.

``schema`` has the tables, ``operations`` what is done in them, ``database`` the connections, and ``store``
the two classes. ``metadata`` holds the tables, for an application that keeps all of its own in Alembic.
"""

from .schema import metadata
from .store import AsyncSQLKeyStore, SQLKeyStore

__all__ = ["AsyncSQLKeyStore", "SQLKeyStore", "metadata"]
