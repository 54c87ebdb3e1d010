import pytest

from neuron.prep.grammar import BadGrammar, lint


@pytest.mark.parametrize(
    "gbnf",
    [
        'root ::= "a" | "b"\n',
        "root ::= [^\"\\\\\\x00-\\x1f]* 'x'\n".replace("'x'", '"x"'),
        'root ::= (\n  "a" |\n  item\n)+ # said twice\nitem ::= [0-9]{2,5} "\\n"?\n',
        'root ::= "(" root? ")"\n',
        "root ::= x{0,2000}\nx ::= .\n",
        'root ::= "" | "a" root\n',
    ],
)
def test_ordinary_grammars_pass(gbnf: str) -> None:
    lint(gbnf)


@pytest.mark.parametrize(
    ("gbnf", "reason"),
    [
        ("", "no rule named root"),
        ('x ::= "a"\n', "no rule named root"),
        ("root ::= y\n", "uses y, which is not defined"),
        ('root ::= "a', 'line 1, column 10: " is never closed'),
        ('root ::= "a"\nb ::= [a-z\n', r"line 2, column 7: \[ is never closed"),
        ('root ::= "a" )\n', "line 1, column 14: unexpected"),
        ('root ::= ("a"\n', r"\) is missing"),
        ("root ::= *\n", r"nothing stands before \*"),
        ('root ::= "\\q"\n', "unknown escape"),
        ('root = "a"\n', "::= is missing after root"),
        ('root ::= "a"{x}\n', "must be followed by a count"),
        ('root ::= "a"{5,2}\n', "at least 1 and its first"),
        ("root ::= <think>\n", "unexpected '<'"),
        ('root ::= "' + "x" * 70_000 + '"\n', "at most 65536 are allowed"),
        ("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000 + "\n", "nested more than 64 deep"),
        ('root ::= "a"{0,99999}\n', "more than 2000"),
        ("root ::= (([a-z]{0,100}){0,100}){0,100}\n", "more than 2000"),
        ("root ::= ((([a-z]*)*)*)*\n", "repeats without end what may be empty"),
        ('root ::= ("a" | "")*\n', "repeats without end what may be empty"),
        ('root ::= root "a" | "b"\n', "root begins with itself"),
        ('root ::= x\nx ::= "a"? y\ny ::= x "b"\n', "begins with itself"),
        ("\n".join(["root ::= r0", *[f"r{i}::=." for i in range(4500)]]), "more than 4000 rules"),
        ("\n".join(["root ::= r0", *[f"r{i} ::= [a-z]{{2000}}" for i in range(50)]]), "amount to"),
        ('root ::= "a\0"\n', "zero byte"),
    ],
)
def test_what_llama_cpp_would_choke_on_is_refused_with_its_place(gbnf: str, reason: str) -> None:
    with pytest.raises(BadGrammar, match=reason):
        lint(gbnf)
