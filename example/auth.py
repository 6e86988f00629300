"""Signing in and out, and who may pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_required, login_user, logout_user

from example.extensions import db
from example.models import User

blueprint = Blueprint("auth", __name__)


def staff_required(view: Callable[..., Any]) -> Callable[..., Any]:
    """Lets staff pass, sends anonymous visitors to the login page, refuses everybody else."""

    @wraps(view)
    @login_required
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if not current_user.is_staff:
            abort(403)
        return view(*args, **kwargs)

    return guarded


@blueprint.route("/login", methods=["GET", "POST"])
def login() -> ResponseReturnValue:
    if request.method == "POST":
        user = db.session.scalar(db.select(User).where(User.email == request.form.get("email", "").strip().lower()))
        if user and user.has_password(request.form.get("password", "")):
            login_user(user)
            return redirect(url_for("desk.home"))
        flash("No such email and password.")
    return render_template("login.html")


@blueprint.post("/logout")
def logout() -> ResponseReturnValue:
    logout_user()
    return redirect(url_for("auth.login"))
