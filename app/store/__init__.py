"""The only room that knows SQL: SQLAlchemy Core, rows in, records out, no ORM.

Writes go through the journal, which answers after the COMMIT that holds them; reads have connections of their
own that cannot write.
"""
