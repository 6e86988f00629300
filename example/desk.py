"""The pages of the desk. What they cost is nobody's business here."""

from __future__ import annotations

from anthropic import AnthropicError
from flask import Blueprint, render_template, request, stream_template
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_required
from openai import OpenAIError

from example import assistant
from example.extensions import db
from example.models import Ticket

blueprint = Blueprint("desk", __name__)


@blueprint.get("/")
@login_required
def home() -> ResponseReturnValue:
    return render_template("home.html", tickets=current_user.tenant.tickets)


@blueprint.route("/chat", methods=["GET", "POST"])
@login_required
def chat() -> ResponseReturnValue:
    question = request.form.get("question", "").strip()
    if not question:
        return render_template("chat.html")
    # stream_template keeps the request's context while the page is sent, as stream_with_context does.
    answer = assistant.answer(question, model=current_user.tenant.chat_model, shop=current_user.tenant.name)
    return stream_template("chat.html", question=question, answer=answer)


@blueprint.route("/summarize", methods=["GET", "POST"])
@login_required
def summarize() -> ResponseReturnValue:
    if request.method == "GET":
        ticket = db.session.scalar(
            db.select(Ticket).where(
                Ticket.id == request.args.get("ticket", type=int), Ticket.tenant_id == current_user.tenant_id
            )
        )
        return render_template("summarize.html", text=ticket.body if ticket else "")
    text = request.form.get("text", "").strip()
    return render_template("summarize.html", text=text, summary=assistant.summarize(text) if text else None)


@blueprint.get("/search")
@login_required
def search() -> ResponseReturnValue:
    query = request.args.get("q", "").strip()
    articles = assistant.search(query, current_user.tenant.articles) if query else []
    return render_template("search.html", query=query, articles=articles)


@blueprint.app_errorhandler(OpenAIError)
@blueprint.app_errorhandler(AnthropicError)
def assistant_is_away(error: Exception) -> ResponseReturnValue:
    return render_template("away.html"), 502
