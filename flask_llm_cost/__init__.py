"""Who is burning $X a month on LLM calls, and on what: a cost ledger inside your Flask app."""
