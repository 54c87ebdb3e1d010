"""neuronctl's commands, in the order of its help."""

from neuron.ctl import access, doctor
from neuron.ctl.command import LocalCommand, Runnable
from neuron.ctl.completion import COMPLETION
from neuron.ctl.happenings import HAPPENINGS
from neuron.ctl.looks import LOOKS
from neuron.ctl.models import MODELS
from neuron.ctl.orders import ORDERS
from neuron.ctl.requests import REQUESTS
from neuron.ctl.top import TOP

COMMANDS: dict[str, Runnable] = {
    **TOP,
    **LOOKS,
    **MODELS,
    **ORDERS,
    **REQUESTS,
    **HAPPENINGS,
    "doctor": LocalCommand("what keeps this host from serving, and what to do", doctor.run, doctor.add_arguments),
    "authorize": LocalCommand("let a key speak to this neuron", access.run_authorize, access.add_authorize),
    "revoke": LocalCommand("let a key in no more", access.run_revoke, access.add_revoke),
    "keys": LocalCommand("this neuron's key, and those it lets in", access.run_keys, access.add_config),
    **COMPLETION,
}
