"""Training on the grid: what it promises of any model, and that it learns."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.model import load_model, save_model
from edgekit.recipe import parse_step
from edgekit.source import identify
from edgekit.step import Context, apply_steps
from edgekit.steps.quantize.grid import quantize
from edgekit.steps.quantize.static import fake_outputs, integer_weights, traced
from edgekit.workbench import encode
