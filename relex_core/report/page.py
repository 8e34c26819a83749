"""ReportData + charts -> one HTML file that needs no network.

The drawing library is part of the page. A content security policy lets only its two scripts run (by digest), and
nothing be fetched; Vega's expressions are interpreted, not evaluated. Everything else is data: Jinja escapes
names in text, and `tojson` escapes "<", ">" and "&" in the JSON that the script reads.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files

import jinja2
import vl_convert
from markupsafe import Markup

from relex_core.report.charts import draw
from relex_core.report.library import library
from relex_core.report.theme import NARROW, themes
from relex_core.report.view import ReportData

TEMPLATES = "relex_core.report"


def render(data: ReportData) -> bytes:
    """The page, in UTF-8."""
    charts = {plot.id: draw(plot, width="container", config={}) for plot in data.plots}
    script, boot = library(), _text("boot.js")
    html = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            data=data,
            charts=charts,
            settings={"themes": themes(), "narrow": NARROW},
            style=Markup(_text("style.css")),
            library=Markup(script),
            boot=Markup(boot),
            policy=policy(script, boot),
            vega=vl_convert.get_vega_version(),
        )
    )
    return (html.rstrip() + "\n").encode()


def policy(*scripts: str) -> str:
    """A content security policy under which these scripts run and no others."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _text(name: str) -> str:
    return files(TEMPLATES).joinpath("templates", name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(TEMPLATES, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False, "separators": (",", ":")}
    environment.policies["json.dumps_function"] = json.dumps
    return environment
