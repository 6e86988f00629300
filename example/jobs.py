"""Work without a browser: ``flask seed`` and ``flask digest``."""

from __future__ import annotations

import click
from flask import current_app
from flask.cli import with_appcontext

from example import assistant
from example.extensions import db
from example.models import Article, Tenant, Ticket, User
from flask_llm_cost import tags


@click.command()
@with_appcontext
def digest() -> None:
    """Write the morning digest of every tenant's tickets."""
    for tenant in db.session.scalars(db.select(Tenant).order_by(Tenant.id)):
        with tags(tenant_id=tenant.id):  # no request here that could tell
            tickets = tenant.tickets
            if current_app.config["TRIAGE_URL"]:
                tickets = sorted(tickets, key=assistant.is_urgent, reverse=True)
            text = assistant.digest(tenant.name, [ticket.subject for ticket in tickets])
            click.echo(f"{tenant.name}\n{text}\n")


@click.command()
@with_appcontext
def seed() -> None:
    """Fill an empty database with two tenants and their people. Every password is "demo"."""
    if db.session.scalar(db.select(Tenant).limit(1)):
        click.echo("The database is filled already.")
        return
    for tenant_id, name, chat_model in TENANTS:
        db.session.add(Tenant(id=tenant_id, name=name, chat_model=chat_model))
    for tenant_id, name, is_staff in PEOPLE:
        domain = "desk.example" if is_staff else f"{tenant_id}.example"
        user = User(email=f"{name.lower()}@{domain}", name=name, tenant_id=tenant_id, is_staff=is_staff)
        user.set_password("demo")
        db.session.add(user)
    for kind, rows in ((Ticket, TICKETS), (Article, ARTICLES)):
        title = "subject" if kind is Ticket else "title"
        for tenant_id, heading, body in rows:
            db.session.add(kind(tenant_id=tenant_id, body=body, **{title: heading}))
    db.session.commit()
    click.echo(f"{len(TENANTS)} tenants, {len(PEOPLE)} people.")


TENANTS = [("juniper", "Juniper Bakery", "gpt-4.1-mini"), ("northwind", "Northwind Cycles", "gpt-4o-mini")]

PEOPLE = [
    ("northwind", "Sam", True),
    ("northwind", "Ada", False),
    ("northwind", "Ben", False),
    ("juniper", "Chloe", False),
    ("juniper", "Dan", False),
]

TICKETS = [
    (
        "juniper",
        "Birthday cake",
        "I ordered a cake for Saturday. Can you write Mila on it, and is there still time to make it vegan?",
    ),
    (
        "juniper",
        "Allergies",
        "My son cannot eat hazelnuts. Which of your breads are safe, and do you bake them in the same oven?",
    ),
    (
        "northwind",
        "Squeaking brakes",
        "Since the last service my brakes squeak in the rain. The shop is far away; can I fix it myself?",
    ),
    (
        "northwind",
        "Wrong size",
        "The frame I got is 54 but I ordered 56. I need it for a tour that starts on the first, please be quick.",
    ),
]

ARTICLES = [
    ("juniper", "Opening hours", "The bakery is open from six in the morning, on Sunday from eight."),
    ("juniper", "Ordering cakes", "Order a cake two days ahead. Names and vegan cakes cost nothing extra."),
    ("juniper", "Allergies", "Breads with nuts are baked in an oven of their own. Ask for the list of ingredients."),
    ("northwind", "Brakes in the rain", "New pads squeak in the rain for a week. Clean the rim with alcohol, not with oil."),
    ("northwind", "Returns", "Send a bicycle of the wrong size back within thirty days, we pay for the van."),
    ("northwind", "Service", "The first service is free and takes a day. Bring the bicycle before ten in the morning."),
]
