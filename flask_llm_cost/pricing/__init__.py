"""Pricing: from usage to an exact cost, by a local price book."""

from flask_llm_cost.pricing.book import PriceBook
from flask_llm_cost.pricing.explain import Explanation
from flask_llm_cost.pricing.matching import Match

__all__ = ["Explanation", "Match", "PriceBook"]
