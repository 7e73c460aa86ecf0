'''Programming tasks made by code: what ``builtin:python`` learns from, and is tested on.

A small algebra: every operation takes one type and gives one, has a line of Python, and is said in several ways. Where
types agree, two or three of them compose to a new task: its description, its solution (one statement an operation) and
tests that tell it from every solution with a wrong step:

    def keep_even_square_each_total(numbers: list[int]) -> int:
        """Return the sum of the squares of the even ones among the numbers."""
        numbers = [x for x in numbers if x % 2 == 0]
        numbers = [x ** 2 for x in numbers]
        return sum(numbers)

Held-out tasks are compositions (ordered tuples of operations) that no text of the training split solves, though it
knows each operation: what they measure is systematic generalization (Lake and Baroni, 2018, arXiv:1711.00350). Rows are
those of HumanEval (Chen et al., 2021, arXiv:2107.03374).

    python -m gpt_text_generation.builtin.python_tasks show --split test --count 3
'''

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any, Literal

from shared.config import check_range, run_commands
from shared.errors import InputError

MODULE = "gpt_text_generation.builtin.python_tasks"
Split = Literal["train", "validation", "test"]
SPLITS = ("train", "validation", "test")
LENGTHS = {"train": (1, 2, 2, 2, 3, 3, 3, 3), "validation": (2, 3), "test": (2, 3)}  # operations, drawn from these
HELD_OUT = {0: "test", 1: "validation"}  # remainders, by 10, of a composition's hash
SAMPLES, CANDIDATES = 20, 48  # inputs on which a task must be worth asking, and from which its tests are chosen
FEWEST = 6  # tests of a task


# --- Types ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A type of values, and how descriptions and code speak of them.

    Attributes:
        annotation: In Python.
        names: Of an argument; the first one also of a variable that holds what a step gave.
        given: What an argument is called in a description.
        later: What a step gave is called by the next one.
        resulting: The same where ``later`` could mean something else.
    """

    annotation: str
    names: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    resulting: str = ""


SIZE = Kind("int", ("n",), ("n",))  # an int that is not negative and so small that one can count to it
PAIR = Kind("int", ("a, b",), ("a and b", "two numbers", "the two numbers", "the numbers a and b"))
INT = Kind("int", ("n", "number", "value"), ("the number", "a number", "the given number"),
           ("it", "the result", "the number"), "the resulting number")  # fmt: skip
TEXT = Kind("str", ("text", "s", "string"), ("the text", "a text", "the string", "the given text"),
            ("it", "the result", "the text"), "the resulting text")  # fmt: skip
NUMBERS = Kind("list[int]", ("numbers", "xs", "values", "nums"),
               ("the numbers", "a list of numbers", "the given numbers", "the numbers in the list"),
               ("them", "the numbers", "these numbers"), "the resulting numbers")  # fmt: skip
WORDS = Kind("list[str]", ("words", "strings", "names"),
             ("the words", "a list of words", "the given words", "the words in the list"),
             ("them", "the words", "these words"), "the resulting words")  # fmt: skip
COUNTS = Kind("dict[str, int]", ("counts", "d", "scores"), ("the dictionary", "a dictionary", "the given dictionary"),
              ("it", "the dictionary", "the result"), "the resulting dictionary")  # fmt: skip
BOOL = Kind("bool")


# --- Operations -------------------------------------------------------------------------------------------------------

# Placeholder → what a description says, and what the code holds.
CONSTANTS: dict[str, tuple[tuple[str, str], ...]] = {
    "limit": tuple((str(k), str(k)) for k in range(2, 31)),
    "term": tuple((str(k), str(k)) for k in range(2, 26)),
    "factor": tuple((str(k), str(k)) for k in range(3, 13)),
    "divisor": tuple((str(k), str(k)) for k in range(3, 10)),
    "size": tuple((str(k), str(k)) for k in range(2, 6)),
    "length": tuple((str(k), str(k)) for k in range(2, 8)),
    "letter": tuple((f"'{c}'", f"'{c}'") for c in "abcdeghilmnoprstuw"),
    "other": tuple((f"'{c}'", f"'{c}'") for c in "xyzqkv"),
    "mark": (("a dash", "'-'"), ("a space", "' '"), ("a comma", "','"), ("a colon", "':'"), ("a slash", "'/'"),
             ("an underscore", "'_'"), ("a plus sign", "'+'"), ("a star", "'*'")),
}  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One step of a task.

    Attributes:
        name: As a part of a function's name.
        takes: Type of its input.
        gives: Type of its output.
        code: An expression in ``$v`` and constants; lines before it are statements.
        do: Ways to ask for it, ``|`` between them; ``$it`` is the input.
        of: Ways to name what it gives; ``$x`` is the input. None begins with ``$x``: of "the first 3 of the numbers in
            ascending order" nobody could say which comes first.
    """

    name: str
    takes: Kind
    gives: Kind
    code: str
    do: str
    of: str

    @property
    def constants(self) -> tuple[str, ...]:
        """The placeholders of its constants, in the order in which the code has them."""
        return tuple(dict.fromkeys(name for name in re.findall(r"\$(\w+)", self.code) if name in CONSTANTS))


_ALL = (
    # Two numbers
    Operation("add", PAIR, INT, "a + b", "add $it | add up $it | take the sum of $it", "the sum of $x"),
    Operation("subtract", PAIR, INT, "a - b", "subtract b from a | take a minus b", "a minus b | the difference a - b"),
    Operation("multiply", PAIR, INT, "a * b", "multiply $it | take the product of $it", "the product of $x"),
    Operation("larger", PAIR, INT, "max(a, b)", "take the larger of $it | pick the greater of $it",
              "the larger of $x | the maximum of $x"),
    Operation("smaller", PAIR, INT, "min(a, b)", "take the smaller of $it | pick the lesser of $it",
              "the smaller of $x | the minimum of $x"),
    Operation("distance", PAIR, INT, "abs(a - b)", "take the distance between $it | take the gap between $it",
              "the distance between $x | the absolute difference of $x"),
    Operation("between", PAIR, NUMBERS, "list(range(a, b + 1))", "list the numbers from a to b | count from a up to b",
              "the numbers from a to b | the whole numbers from a up to b"),
    # A number to count to
    Operation("count_up", SIZE, NUMBERS, "list(range(1, $v + 1))",
              "list the numbers from 1 to n | count from 1 up to n",
              "the numbers from 1 to n | the whole numbers from 1 up to n"),
    Operation("multiples", SIZE, NUMBERS, "list(range($factor, $v + 1, $factor))",
              "list the multiples of $factor up to n",
              "the multiples of $factor up to n | the multiples of $factor that are at most n"),
    Operation("divisors", SIZE, NUMBERS, "[d for d in range(1, $v + 1) if $v % d == 0]",
              "list the divisors of n | find all divisors of n", "the divisors of n | the numbers that divide n"),
    Operation("factorial", SIZE, INT, "result = 1\nfor i in range(2, $v + 1):\n    result *= i\nresult",
              "take the factorial of n | multiply the numbers from 1 to n", "the factorial of n | n factorial"),
    Operation("fibonacci", SIZE, INT, "a, b = 0, 1\nfor _ in range($v):\n    a, b = b, a + b\na",
              "take the Fibonacci number n | take the n-th Fibonacci number", "the n-th Fibonacci number"),
    Operation("is_prime", SIZE, BOOL, "$v > 1 and all($v % d for d in range(2, $v))", "check whether n is prime",
              "whether n is prime | whether n is a prime number"),
    # A number → a number
    Operation("double", INT, INT, "$v * 2", "double $it | take twice $it", "twice $x | the double of $x"),
    Operation("square", INT, INT, "$v ** 2", "square $it | take the square of $it", "the square of $x"),
    Operation("cube", INT, INT, "$v ** 3", "cube $it | raise $it to the third power", "the cube of $x"),
    Operation("times", INT, INT, "$v * $factor", "multiply $it by $factor",
              "$factor times $x | the product of $factor and $x"),
    Operation("plus", INT, INT, "$v + $term", "add $term to $it | increase $it by $term",
              "$term more than $x | the sum of $term and $x"),
    Operation("minus", INT, INT, "$v - $term", "subtract $term from $it | decrease $it by $term", "$term less than $x"),
    Operation("negate", INT, INT, "-$v", "negate $it | flip the sign of $it", "the negative of $x | minus $x"),
    Operation("absolute", INT, INT, "abs($v)", "take the absolute value of $it | drop the sign of $it",
              "the absolute value of $x"),
    Operation("halve", INT, INT, "$v // 2", "halve $it, rounding down | divide $it by two, rounding down",
              "half of $x, rounded down"),
    Operation("remainder", INT, INT, "$v % $divisor",
              "take the remainder of $it by $divisor | reduce $it modulo $divisor", "the remainder by $divisor of $x"),
    Operation("digit_sum", INT, INT, "sum(int(c) for c in str(abs($v)))",
              "add up the digits of $it | sum the digits of $it", "the sum of the digits of $x | the digit sum of $x"),
    Operation("digit_count", INT, INT, "len(str(abs($v)))", "count the digits of $it",
              "the number of digits of $x | the digit count of $x"),
    Operation("at_most", INT, INT, "min($v, $limit)", "cap $it at $limit | limit $it to at most $limit",
              "the smaller of $limit and $x"),
    Operation("collatz", INT, INT, "$v // 2 if $v % 2 == 0 else 3 * $v + 1",
              "halve $it if it is even, or else triple it and add 1", "the Collatz step of $x"),
    # A number → something else
    Operation("write_out", INT, TEXT, "str($v)", "turn $it into text | convert $it to a string", "the text form of $x"),
    Operation("binary", INT, TEXT, "format($v, 'b')", "write $it in binary | convert $it to binary",
              "the binary form of $x"),
    Operation("parity", INT, TEXT, "'even' if $v % 2 == 0 else 'odd'", "say 'even' or 'odd' for $it",
              "the parity, 'even' or 'odd', of $x"),
    Operation("digits", INT, NUMBERS, "[int(c) for c in str(abs($v))]",
              "list the digits of $it | split $it into its digits", "the digits of $x | the single digits of $x"),
    Operation("is_even", INT, BOOL, "$v % 2 == 0", "check whether $it is even | tell if $it is even",
              "whether $x is even"),
    Operation("is_above", INT, BOOL, "$v > $limit",
              "check whether $it is greater than $limit | tell if $it is above $limit",
              "whether $x is greater than $limit"),
    Operation("is_multiple", INT, BOOL, "$v % $divisor == 0", "check whether $it is divisible by $divisor",
              "whether $x is divisible by $divisor | whether $x is a multiple of $divisor"),
    # A text → a text
    Operation("reverse_text", TEXT, TEXT, "$v[::-1]", "reverse $it | turn $it around | write $it backwards",
              "the reverse of $x"),
    Operation("uppercase", TEXT, TEXT, "$v.upper()", "convert $it to upper case | write $it in capitals",
              "the upper-case form of $x"),
    Operation("lowercase", TEXT, TEXT, "$v.lower()", "convert $it to lower case | write $it in small letters",
              "the lower-case form of $x"),
    Operation("capitalized", TEXT, TEXT, "$v.capitalize()", "capitalize $it", "the capitalized form of $x"),
    Operation("trim", TEXT, TEXT, "$v.strip()", "strip the spaces at both ends | trim $it", "the trimmed form of $x"),
    Operation("remove_vowels", TEXT, TEXT, "''.join(c for c in $v if c.lower() not in 'aeiou')",
              "remove the vowels | delete all vowels | drop every vowel", "what is left without vowels of $x"),
    Operation("keep_vowels", TEXT, TEXT, "''.join(c for c in $v if c.lower() in 'aeiou')",
              "keep only the vowels | drop everything but the vowels", "the vowels of $x"),
    Operation("remove_digits", TEXT, TEXT, "''.join(c for c in $v if not c.isdigit())",
              "remove the digits | delete all digits", "what is left without digits of $x"),
    Operation("remove_spaces", TEXT, TEXT, "$v.replace(' ', '')", "remove the spaces | delete all spaces",
              "what is left without spaces of $x"),
    Operation("replace_letter", TEXT, TEXT, "$v.replace($letter, $other)",
              "replace every $letter by $other | turn each $letter into $other",
              "the version with $other for $letter of $x"),
    Operation("replace_spaces", TEXT, TEXT, "$v.replace(' ', $mark)",
              "replace each space by $mark | put $mark in place of every space",
              "the version with $mark for each space of $x"),
    Operation("double_characters", TEXT, TEXT, "''.join(c * 2 for c in $v)",
              "write every character twice | double each character", "the version with doubled characters of $x"),
    Operation("first_characters", TEXT, TEXT, "$v[:$size]",
              "take the first $size characters | keep only the first $size characters",
              "the first $size characters of $x"),
    Operation("last_characters", TEXT, TEXT, "$v[-$size:]",
              "take the last $size characters | keep only the last $size characters",
              "the last $size characters of $x"),
    Operation("odd_characters", TEXT, TEXT, "$v[::2]", "take every second character | keep every other character",
              "every second character of $x"),
    Operation("sort_characters", TEXT, TEXT, "''.join(sorted($v))", "sort the characters | put the characters in order",
              "the sorted characters of $x"),
    Operation("unique_characters", TEXT, TEXT, "''.join(dict.fromkeys($v))",
              "remove repeated characters | keep each character only once", "the distinct characters of $x"),
    Operation("repeat", TEXT, TEXT, "$v * $size", "repeat $it $size times", "$size copies of $x"),
    Operation("append_mark", TEXT, TEXT, "$v + $mark", "append $mark | add $mark at the end",
              "the extension by $mark of $x"),
    # A text → something else
    Operation("text_length", TEXT, INT, "len($v)", "count the characters | take the length of $it",
              "the length of $x | the number of characters in $x"),
    Operation("count_vowels", TEXT, INT, "sum(c.lower() in 'aeiou' for c in $v)", "count the vowels | count all vowels",
              "the number of vowels in $x | how many vowels are in $x"),
    Operation("count_letter", TEXT, INT, "$v.count($letter)",
              "count the letter $letter | count how often $letter occurs",
              "the number of $letter in $x | how often $letter occurs in $x"),
    Operation("count_words", TEXT, INT, "len($v.split())", "count the words in $it",
              "the number of words in $x | how many words are in $x"),
    Operation("count_digits", TEXT, INT, "sum(c.isdigit() for c in $v)", "count the digits in $it",
              "the number of digits in $x | how many digits are in $x"),
    Operation("is_palindrome", TEXT, BOOL, "$v == $v[::-1]", "check whether $it is a palindrome",
              "whether $x reads the same backwards | whether $x is a palindrome"),
    Operation("starts_with", TEXT, BOOL, "$v.startswith($letter)", "check whether $it starts with $letter",
              "whether $x starts with $letter"),
    Operation("has_letter", TEXT, BOOL, "$letter in $v", "check whether $it contains $letter",
              "whether $x contains $letter | whether $letter occurs in $x"),
    Operation("split_words", TEXT, WORDS, "$v.split()", "split $it into words | break $it into words",
              "the single words of $x | the words of $x"),
    Operation("split_at", TEXT, WORDS, "$v.split($mark)", "split $it at $mark | cut $it at every $mark",
              "the parts, split at $mark, of $x"),
    Operation("characters", TEXT, WORDS, "list($v)", "list the characters | split $it into characters",
              "the list of characters of $x"),
    Operation("positions", TEXT, NUMBERS, "[i for i, c in enumerate($v) if c == $letter]",
              "list the positions of $letter | find all positions of $letter", "the positions of $letter in $x"),
    Operation("letter_counts", TEXT, COUNTS, "{c: $v.count(c) for c in $v}",
              "count how often each character occurs | count each character", "the counts of the characters of $x"),
    # Numbers → numbers
    Operation("keep_even", NUMBERS, NUMBERS, "[x for x in $v if x % 2 == 0]",
              "keep the even numbers | keep only the even numbers | remove the odd numbers",
              "the even ones among $x | the even numbers in $x | the even numbers of $x"),
    Operation("keep_odd", NUMBERS, NUMBERS, "[x for x in $v if x % 2 == 1]",
              "keep the odd numbers | keep only the odd numbers | remove the even numbers",
              "the odd ones among $x | the odd numbers in $x | the odd numbers of $x"),
    Operation("keep_positive", NUMBERS, NUMBERS, "[x for x in $v if x > 0]",
              "keep the positive numbers | keep only the positive numbers",
              "the positive ones among $x | the positive numbers in $x"),
    Operation("keep_above", NUMBERS, NUMBERS, "[x for x in $v if x > $limit]",
              "keep the numbers greater than $limit | keep the numbers above $limit | drop numbers up to $limit",
              "the ones greater than $limit among $x | the numbers above $limit in $x"),
    Operation("keep_below", NUMBERS, NUMBERS, "[x for x in $v if x < $limit]",
              "keep the numbers less than $limit | keep the numbers below $limit | drop numbers from $limit on",
              "the ones less than $limit among $x | the numbers below $limit in $x"),
    Operation("keep_multiples", NUMBERS, NUMBERS, "[x for x in $v if x % $divisor == 0]",
              "keep the multiples of $divisor | keep the numbers divisible by $divisor",
              "the multiples of $divisor among $x | the numbers divisible by $divisor in $x"),
    Operation("square_each", NUMBERS, NUMBERS, "[x ** 2 for x in $v]", "square each number | square every one of $it",
              "the squares of $x"),
    Operation("double_each", NUMBERS, NUMBERS, "[x * 2 for x in $v]", "double each number | double every one of $it",
              "the doubles of $x"),
    Operation("multiply_each", NUMBERS, NUMBERS, "[x * $factor for x in $v]",
              "multiply each number by $factor | multiply all of $it by $factor", "the products with $factor of $x"),
    Operation("add_to_each", NUMBERS, NUMBERS, "[x + $term for x in $v]",
              "add $term to each number | increase every number by $term", "the values, raised by $term, of $x"),
    Operation("negate_each", NUMBERS, NUMBERS, "[-x for x in $v]", "negate each number | flip the sign of every number",
              "the negatives of $x"),
    Operation("absolute_each", NUMBERS, NUMBERS, "[abs(x) for x in $v]",
              "take the absolute value of each number | drop the sign of every number", "the absolute values of $x"),
    Operation("remainders", NUMBERS, NUMBERS, "[x % $divisor for x in $v]",
              "take the remainder of each number by $divisor | reduce every number modulo $divisor",
              "the remainders by $divisor of $x"),
    Operation("cap_each", NUMBERS, NUMBERS, "[min(x, $limit) for x in $v]",
              "cap each number at $limit | replace numbers above $limit by $limit",
              "the values, capped at $limit, of $x"),
    Operation("sort_up", NUMBERS, NUMBERS, "sorted($v)",
              "sort $it in ascending order | sort $it from smallest to largest", "the ascending order of $x"),
    Operation("sort_down", NUMBERS, NUMBERS, "sorted($v, reverse=True)",
              "sort $it in descending order | sort $it from largest to smallest", "the descending order of $x"),
    Operation("reverse_list", NUMBERS, NUMBERS, "$v[::-1]", "reverse the order of $it | reverse the list",
              "the reversed order of $x"),
    Operation("unique_numbers", NUMBERS, NUMBERS, "list(dict.fromkeys($v))",
              "remove duplicate numbers | keep each number only once",
              "the distinct values among $x | the different values in $x"),
    Operation("first_numbers", NUMBERS, NUMBERS, "$v[:$size]",
              "take the first $size numbers | keep only the first $size of $it", "the first $size of $x"),
    Operation("last_numbers", NUMBERS, NUMBERS, "$v[-$size:]",
              "take the last $size numbers | keep only the last $size of $it", "the last $size of $x"),
    Operation("skip_numbers", NUMBERS, NUMBERS, "$v[$size:]",
              "drop the first $size numbers | skip the first $size of $it", "all but the first $size of $x"),
    Operation("every_other", NUMBERS, NUMBERS, "$v[::2]", "take every second number | keep every other number",
              "every second one of $x"),
    Operation("running_sums", NUMBERS, NUMBERS, "[sum($v[:i + 1]) for i in range(len($v))]",
              "take the running sums | replace each number by the sum up to it", "the running sums of $x"),
    Operation("steps_between", NUMBERS, NUMBERS, "[b - a for a, b in zip($v, $v[1:])]",
              "take the differences of neighbors | subtract from each number the one before",
              "the differences between neighbors of $x"),
    # Numbers → something else
    Operation("total", NUMBERS, INT, "sum($v)", "add $it up | take the sum of $it | sum $it",
              "the sum of $x | the total of $x"),
    Operation("product", NUMBERS, INT, "result = 1\nfor x in $v:\n    result *= x\nresult",
              "multiply $it together | take the product of $it", "the product of $x"),
    Operation("largest", NUMBERS, INT, "max($v, default=0)",
              "take the largest number (0 if there is none) | find the maximum, or 0",
              "the largest (or 0) of $x | the maximum (or 0) of $x"),
    Operation("smallest", NUMBERS, INT, "min($v, default=0)",
              "take the smallest number (0 if there is none) | find the minimum, or 0",
              "the smallest (or 0) of $x | the minimum (or 0) of $x"),
    Operation("spread", NUMBERS, INT, "max($v, default=0) - min($v, default=0)",
              "subtract the smallest number from the largest (0 if there is none)",
              "the largest minus the smallest (or 0) of $x"),
    Operation("how_many", NUMBERS, INT, "len($v)", "count the numbers | count $it",
              "the number of items in $x | the count of $x"),
    Operation("count_even", NUMBERS, INT, "sum(x % 2 == 0 for x in $v)",
              "count the even numbers | count how many are even",
              "the number of even ones in $x | how many are even of $x"),
    Operation("count_above", NUMBERS, INT, "sum(x > $limit for x in $v)",
              "count the numbers above $limit | count how many are greater than $limit",
              "the number of ones above $limit in $x | how many are greater than $limit of $x"),
    Operation("average", NUMBERS, INT, "sum($v) // len($v) if $v else 0",
              "take the average, rounded down (0 if there is none)", "the rounded-down average (or 0) of $x"),
    Operation("first_number", NUMBERS, INT, "$v[0] if $v else 0", "take the first number (0 if there is none)",
              "the first (or 0) of $x"),
    Operation("any_above", NUMBERS, BOOL, "any(x > $limit for x in $v)",
              "check whether any number is greater than $limit", "whether any of $x is greater than $limit"),
    Operation("all_even", NUMBERS, BOOL, "all(x % 2 == 0 for x in $v)", "check whether all numbers are even",
              "whether all of $x are even"),
    Operation("has_number", NUMBERS, BOOL, "$term in $v", "check whether $term is among $it",
              "whether $term is among $x"),
    Operation("is_sorted", NUMBERS, BOOL, "$v == sorted($v)", "check whether $it are in ascending order",
              "whether $x are in ascending order"),
    Operation("has_duplicates", NUMBERS, BOOL, "len(set($v)) < len($v)", "check whether any number occurs twice",
              "whether any of $x occurs twice"),
    Operation("as_strings", NUMBERS, WORDS, "[str(x) for x in $v]",
              "turn each number into a string | convert every number to text", "the string forms of $x"),
    Operation("join_numbers", NUMBERS, TEXT, "$mark.join(str(x) for x in $v)",
              "join the numbers with $mark | put $mark between the numbers", "the text, joined with $mark, of $x"),
    # Words → words
    Operation("upper_each", WORDS, WORDS, "[w.upper() for w in $v]",
              "convert each word to upper case | write every word in capitals", "the upper-case forms of $x"),
    Operation("lower_each", WORDS, WORDS, "[w.lower() for w in $v]",
              "convert each word to lower case | write every word in small letters", "the lower-case forms of $x"),
    Operation("capitalize_each", WORDS, WORDS, "[w.capitalize() for w in $v]",
              "capitalize each word | capitalize every one of $it", "the capitalized forms of $x"),
    Operation("reverse_each", WORDS, WORDS, "[w[::-1] for w in $v]", "reverse each word | write every word backwards",
              "the reversed forms of $x"),
    Operation("sort_words", WORDS, WORDS, "sorted($v)", "sort $it alphabetically | put $it in alphabetical order",
              "the alphabetical order of $x"),
    Operation("sort_by_length", WORDS, WORDS, "sorted($v, key=len)",
              "sort $it by length | order $it from shortest to longest", "the order by length of $x"),
    Operation("reverse_words", WORDS, WORDS, "$v[::-1]", "reverse the order of $it | put $it in reverse order",
              "the reversed order of $x"),
    Operation("unique_words", WORDS, WORDS, "list(dict.fromkeys($v))",
              "remove duplicate words | keep each word only once",
              "the distinct ones among $x | the different words in $x"),
    Operation("keep_longer", WORDS, WORDS, "[w for w in $v if len(w) > $length]",
              "keep the words longer than $length letters | keep the words with more than $length letters",
              "the ones longer than $length letters among $x"),
    Operation("keep_shorter", WORDS, WORDS, "[w for w in $v if len(w) < $length]",
              "keep the words shorter than $length letters | keep the words with fewer than $length letters",
              "the ones shorter than $length letters among $x"),
    Operation("keep_starting", WORDS, WORDS, "[w for w in $v if w.startswith($letter)]",
              "keep the words that start with $letter | keep only words beginning with $letter",
              "the ones starting with $letter among $x"),
    Operation("keep_containing", WORDS, WORDS, "[w for w in $v if $letter in w]",
              "keep the words that contain $letter | keep only words with $letter in them",
              "the ones containing $letter among $x"),
    Operation("keep_palindromes", WORDS, WORDS, "[w for w in $v if w == w[::-1]]",
              "keep the palindromes | keep the words that read the same backwards", "the palindromes among $x"),
    Operation("first_words", WORDS, WORDS, "$v[:$size]",
              "take the first $size words | keep only the first $size of $it", "the first $size of $x"),
    Operation("first_letters", WORDS, WORDS, "[w[:1] for w in $v]",
              "take the first letter of each word | shorten every word to its first letter", "the first letters of $x"),
    # Words → something else
    Operation("lengths", WORDS, NUMBERS, "[len(w) for w in $v]",
              "take the length of each word | replace every word by its length", "the lengths of $x"),
    Operation("word_count", WORDS, INT, "len($v)", "count the words | count $it",
              "the number of items in $x | the count of $x"),
    Operation("total_length", WORDS, INT, "sum(len(w) for w in $v)",
              "add up the lengths of $it | count the letters of all words",
              "the total length of $x | the sum of the lengths of $x"),
    Operation("count_starting", WORDS, INT, "sum(w.startswith($letter) for w in $v)",
              "count the words that start with $letter", "the number of ones starting with $letter in $x"),
    Operation("join_words", WORDS, TEXT, "$mark.join($v)", "join $it with $mark | put $mark between $it",
              "the text, joined with $mark, of $x"),
    Operation("concatenate", WORDS, TEXT, "''.join($v)", "join $it without anything between | string $it together",
              "the concatenation of $x"),
    Operation("longest", WORDS, TEXT, "max($v, key=len, default='')",
              "take the longest word, or '' | find the longest of $it, or ''", "the longest (or '') of $x"),
    Operation("shortest", WORDS, TEXT, "min($v, key=len, default='')",
              "take the shortest word, or '' | find the shortest of $it, or ''", "the shortest (or '') of $x"),
    Operation("first_word", WORDS, TEXT, "$v[0] if $v else ''", "take the first word, or ''",
              "the first (or '') of $x"),
    Operation("initials", WORDS, TEXT, "''.join(w[:1] for w in $v)",
              "join the first letters of $it | build a word of the first letters",
              "the word of the first letters of $x | the initials of $x"),
    Operation("word_counts", WORDS, COUNTS, "{w: $v.count(w) for w in $v}",
              "count how often each word occurs | map each word to its count", "the counts of each of $x"),
    Operation("word_lengths", WORDS, COUNTS, "{w: len(w) for w in $v}", "map each word to its length",
              "the dictionary with the lengths of $x"),
    Operation("any_longer", WORDS, BOOL, "any(len(w) > $length for w in $v)",
              "check whether any word is longer than $length letters",
              "whether any of $x is longer than $length letters"),
    Operation("all_lower", WORDS, BOOL, "all(w.islower() for w in $v)", "check whether all words are in lower case",
              "whether all of $x are in lower case"),
    # A dictionary → anything
    Operation("keep_high", COUNTS, COUNTS, "{key: value for key, value in $v.items() if value > $limit}",
              "keep the entries with a value above $limit | keep the entries whose value is greater than $limit",
              "the entries with a value above $limit of $x"),
    Operation("keep_keys", COUNTS, COUNTS, "{key: value for key, value in $v.items() if key.startswith($letter)}",
              "keep the entries whose key starts with $letter", "the entries with a key starting with $letter of $x"),
    Operation("double_values", COUNTS, COUNTS, "{key: value * 2 for key, value in $v.items()}",
              "double each value | double all values", "the version with doubled values of $x"),
    Operation("keys", COUNTS, WORDS, "list($v)", "list the keys | take the keys", "the keys of $x"),
    Operation("sorted_keys", COUNTS, WORDS, "sorted($v)",
              "list the keys in alphabetical order | sort the keys alphabetically", "the sorted keys of $x"),
    Operation("keys_by_value", COUNTS, WORDS, "sorted($v, key=$v.get)", "sort the keys by their values",
              "the keys, sorted by value, of $x"),
    Operation("dictionary_values", COUNTS, NUMBERS, "list($v.values())", "list the values | take the values",
              "the values of $x"),
    Operation("total_value", COUNTS, INT, "sum($v.values())", "add up the values | take the sum of the values",
              "the sum of the values of $x"),
    Operation("highest_value", COUNTS, INT, "max($v.values(), default=0)",
              "take the highest value, or 0 | find the largest value, or 0", "the highest value (or 0) of $x"),
    Operation("entries", COUNTS, INT, "len($v)", "count the entries | count the keys", "the number of entries of $x"),
    Operation("look_up", COUNTS, INT, "$v.get($letter, 0)",
              "look up $letter (0 if missing) | get the value of $letter (0 if missing)",
              "the value of $letter (0 if missing) in $x"),
    Operation("best_key", COUNTS, TEXT, "max($v, key=$v.get, default='')",
              "take the key with the highest value, or '' | find the key of the largest value, or ''",
              "the key with the highest value (or '') of $x"),
    Operation("has_key", COUNTS, BOOL, "$letter in $v", "check whether $letter is a key",
              "whether $letter is a key of $x"),
)  # fmt: skip
OPERATIONS: dict[str, Operation] = {operation.name: operation for operation in _ALL}
_ALIKE = Counter((o.takes, o.gives) for o in _ALL)


@dataclass(frozen=True)
class Step:
    """An operation with its constants.

    Attributes:
        operation: Which.
        constants: Each as a description says it and as code holds it, in the order of ``operation.constants``.
    """

    operation: Operation
    constants: tuple[tuple[str, str], ...] = ()

    def said(self, template: str, **more: str) -> str:
        """Fill a template of a description."""
        values = {name: said for name, (said, _) in zip(self.operation.constants, self.constants, strict=True)}
        return Template(template).substitute(values, **more)

    def lines(self, variable: str) -> list[str]:
        """Return its code, the last line of which is an expression."""
        values = {name: code for name, (_, code) in zip(self.operation.constants, self.constants, strict=True)}
        return Template(self.operation.code).substitute(values, v=variable).split("\n")


def random_step(operation: Operation, rng: random.Random) -> Step:
    """Give an operation constants."""
    return Step(operation, tuple(rng.choice(CONSTANTS[name]) for name in operation.constants))


@functools.lru_cache(32768)
def _function(step: Step) -> Callable[..., Any]:
    """Return a step as a function of its input, of two numbers where it takes a pair."""
    names = step.operation.takes.names[0]
    *statements, expression = step.lines(names)
    body = "".join(f"    {line}\n" for line in [*statements, f"return {expression}"])
    scope: dict[str, Any] = {}
    exec(f"def step({names}):\n{body}", scope)  # code of this file, whose constants are chosen from its own table
    made: Callable[..., Any] = scope["step"]
    return made


def run_steps(steps: Sequence[Step], arguments: tuple[Any, ...]) -> Any:
    """Return what a task gives for the arguments of its function."""
    return _chain(steps)(arguments)


def _chain(steps: Sequence[Step]) -> Callable[[tuple[Any, ...]], Any]:
    """Return steps as one function of their arguments; of many inputs, each step is looked up once."""
    first, *others = map(_function, steps)

    def run(arguments: tuple[Any, ...]) -> Any:
        value = first(*arguments)
        for function in others:
            value = function(value)
        return value

    return run


# --- Inputs and tests -------------------------------------------------------------------------------------------------

_VOCABULARY = """apple banana bob level Anna noon wow river stone green Blue tree radar eve moon sun window garden table
pen Paper orange cat dog bird house small great robot data extra zoo kayak queen hello World a to""".split()


def random_arguments(kind: Kind, steps: Sequence[Step], rng: random.Random) -> tuple[Any, ...]:
    """Draw arguments that the steps' constants matter to: often near numbers, letters and marks that occur in them."""
    said = [code.strip("'") for step in steps for _, code in step.constants]
    numbers = [int(code) for code in said if code.isdigit()]
    marks = [code for code in said if code and not code.isdigit() and not code.isalpha()] or [" "]
    letters = [code for code in said if code.isalpha()] or ["a"]

    def number() -> int:
        if numbers and rng.random() < 0.35:
            return rng.choice(numbers) * rng.choice((1, 1, 1, 2)) + rng.choice((-1, 0, 0, 1))
        return rng.randint(-12, 40)

    def word() -> str:
        made = rng.choice(_VOCABULARY)
        letter = rng.choice(letters)
        return rng.choice((made, made, made, letter + made, made + letter, letter, made.upper()))

    if kind is SIZE:
        return (abs(number()) % 40,)
    if kind is PAIR:
        return number(), number()
    if kind is INT:
        return (rng.choice((number(), number(), rng.randint(-999, 9999))),)
    if kind is TEXT:
        parts = [rng.choice((word(), word(), word(), str(rng.randint(0, 99)))) for _ in range(rng.randint(0, 4))]
        text = rng.choice((" ", " ", rng.choice(marks))).join(parts)
        return (rng.choice((text, text, text, f" {text} ", text + text[::-1], word())),)
    if kind is NUMBERS:
        made = [number() for _ in range(rng.randint(0, 8))]
        return (rng.choice((made, made, sorted(made), sorted(made), made + made[:2], [abs(x) for x in made],
                            [2 * x for x in made])),)  # fmt: skip
    if kind is WORDS:
        words = [word() for _ in range(rng.randint(0, 6))]
        return (words + words[: rng.choice((0, 0, 1, 2))],)
    return ({rng.choice((word(), rng.choice(letters))): number() for _ in range(rng.randint(0, 5))},)


def _shortest_arguments(kind: Kind) -> list[tuple[Any, ...]]:
    """Return the edge cases of a type."""
    edges: dict[str, list[Any]] = {"str": ["", " "], "list[int]": [[], [0]], "list[str]": [[], [""]],
                                   "dict[str, int]": [{}]}  # fmt: skip
    return [(0, 0)] if kind is PAIR else [(edge,) for edge in edges.get(kind.annotation, [0, 1])]


def is_worth_asking(steps: Sequence[Step]) -> bool:
    """Whether a composition says something: no step is idle, and what it gives is not nearly always the same.

    "Negate the number, then take its absolute value" and "keep the even numbers, then count the odd ones" do not.
    """
    rng = random.Random(str([(step.operation.name, step.constants) for step in steps]))
    inputs = [random_arguments(steps[0].operation.takes, steps, rng) for _ in range(SAMPLES)]
    outputs = list(map(repr, map(_chain(steps), inputs)))
    if Counter(outputs).most_common(1)[0][1] > 0.75 * SAMPLES:
        return False
    for i, step in enumerate(steps):
        if step.operation.takes is step.operation.gives and len(steps) > 1:
            without = map(repr, map(_chain([*steps[:i], *steps[i + 1 :]]), inputs))
            if sum(map(str.__ne__, without, outputs)) < 0.15 * SAMPLES:
                return False
    return True


def mutants(steps: Sequence[Step], rng: random.Random) -> Iterator[list[Step]]:
    """Yield the same task with one wrong step: left out, of another operation of its types, with another constant."""
    for i, step in enumerate(steps):
        operation = step.operation
        before, after = list(steps[:i]), list(steps[i + 1 :])
        if operation.takes is operation.gives and len(steps) > 1:
            yield before + after
        for other in _ALL:
            if other.takes is operation.takes and other.gives is operation.gives and other is not operation:
                yield [*before, random_step(other, rng), *after]
        for j, name in enumerate(operation.constants):
            table = CONSTANTS[name]
            place = table.index(step.constants[j])
            for neighbor in {(place + 1) % len(table), place - 1}:
                constants = (*step.constants[:j], table[neighbor], *step.constants[j + 1 :])
                yield [*before, Step(operation, constants), *after]


def test_arguments(steps: Sequence[Step], seed: str) -> list[tuple[Any, ...]]:
    """Choose arguments that tell a task from its mutants: the edge cases, and then what finds most of those left.

    A mutant that no candidate tells apart does the same, as far as one can see.
    """
    rng = random.Random(seed)
    kind = steps[0].operation.takes
    chosen = _shortest_arguments(kind)
    candidates = [random_arguments(kind, steps, rng) for _ in range(CANDIDATES)]
    everything = [*chosen, *candidates]
    expected = list(map(repr, map(_chain(steps), everything)))
    found: list[set[int]] = [set() for _ in everything]
    for number, mutant in enumerate(mutants(steps, rng)):
        for place, output in enumerate(map(repr, map(_chain(mutant), everything))):
            if output != expected[place]:
                found[place].add(number)
    alive = set().union(*found) - set().union(*found[: len(chosen)])
    while alive:
        best = max(range(len(everything)), key=lambda place: (len(found[place] & alive), -len(repr(everything[place]))))
        chosen.append(everything[best])
        alive -= found[best]
    new = (arguments for arguments in candidates if arguments not in chosen)
    return chosen + list(itertools.islice(new, max(0, FEWEST - len(chosen))))


# --- Tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A function to write.

    Attributes:
        steps: What it is composed of.
        description: In English.
        entry_point: Name of the function.
        prompt: Its head and docstring, as HumanEval has them.
        solution: Its body.
    """

    steps: tuple[Step, ...]
    description: str
    entry_point: str
    prompt: str
    solution: str

    @property
    def composition(self) -> tuple[str, ...]:
        """The names of its operations, in order."""
        return tuple(step.operation.name for step in self.steps)

    @functools.cached_property
    def tests(self) -> str:
        """A function ``check(candidate)`` that fails unless the candidate does what the description says."""
        lines = ["def check(candidate):"]
        for arguments in test_arguments(self.steps, self.prompt):
            shown = ", ".join(map(repr, arguments))
            lines.append(f"    assert candidate({shown}) == {run_steps(self.steps, arguments)!r}")
        return "\n".join(lines) + "\n"


def _nested(steps: Sequence[Step], given: str, rng: random.Random) -> str:
    """Name what the steps give, the last one first: "the sum of the squares of the numbers"."""
    for step in steps:
        given = step.said(rng.choice(step.operation.of.split(" | ")), x=given)
    return given


def _sequence(steps: Sequence[Step], given: str, rng: random.Random) -> list[str]:
    """Ask for each step in its turn: "square each number", "add them up"."""
    asked = []
    for step in steps:
        asked.append(step.said(rng.choice(step.operation.do.split(" | ")), it=given))
        given = rng.choice(step.operation.gives.later) if step.operation.gives.later else ""
    return asked


def _joined(parts: Sequence[str], rng: random.Random) -> str:
    """Make a sentence, or a few, of what is to be done one after the other."""
    if len(parts) == 1:
        return parts[0]
    *before, last = parts
    return rng.choice((
        ", then ".join(parts),
        ", ".join(before) + ", and then " + last,
        ", ".join(before) + " and " + last,
        "first " + ", then ".join(before) + ", and finally " + last,
        ". Then ".join(f"{part[0].upper()}{part[1:]}" if i == 0 else part for i, part in enumerate(parts)),
        ". ".join(f"{part[0].upper()}{part[1:]}" for part in parts),
    ))  # fmt: skip


def describe(steps: Sequence[Step], rng: random.Random) -> str:
    """Say what a task is: step by step, as one nested phrase, or the first steps so and the others so."""
    kind = steps[0].operation.takes
    given = rng.choice(kind.given)
    told = rng.choice((len(steps), 0, rng.randint(0, len(steps))))  # steps that are asked for in their turn
    asked, rest = _sequence(steps[:told], given, rng), steps[told:]
    if rest:
        verbs = ("check", "tell") if rest[-1].operation.gives is BOOL else ("find", "compute", "give back")
        verb = rng.choice(("return", "return", "return", *verbs))
        asked.append(f"{verb} {_nested(rest, rest[0].operation.takes.resulting if told else given, rng)}")
    text = _joined(asked, rng) + "."
    return text[0].upper() + text[1:]


def compose(steps: Sequence[Step], rng: random.Random | None = None) -> Task:
    """Make a task of steps.

    Args:
        steps: One to three, each of which takes what the one before gives.
        rng: Chooses words and names; by default the same for the same steps.

    Raises:
        InputError: The types do not agree.
    """
    names = [step.operation.name for step in steps]
    for one, other in zip(steps, steps[1:], strict=False):
        if one.operation.gives is not other.operation.takes:
            raise InputError(f"{other.operation.name} must take what {one.operation.name} gives. It gives "
                             f"{one.operation.gives.annotation}.")  # fmt: skip
    if not steps:
        raise InputError("A task must have a step at least.")
    rng = rng or random.Random(str(steps))
    takes, gives = steps[0].operation.takes, steps[-1].operation.gives
    variable = rng.choice(takes.names)
    signature = ", ".join(f"{name}: {takes.annotation}" for name in variable.split(", "))
    entry_point = rng.choice(("_".join(names),) * 6 + (names[-1], names[-1], "solution", "solve", "transform"))
    description = describe(steps, rng)
    argument, lines = (takes, variable), []
    for number, step in enumerate(steps, 1):
        *statements, expression = step.lines(variable)
        kind = step.operation.gives
        variable = argument[1] if kind is argument[0] else (kind.names or ("",))[0]
        lines += [*statements, f"return {expression}" if number == len(steps) else f"{variable} = {expression}"]
    prompt = f'def {entry_point}({signature}) -> {gives.annotation}:\n    """{description}"""\n'
    return Task(tuple(steps), description, entry_point, prompt, "".join(f"    {line}\n" for line in lines))


def split_of(composition: Sequence[str]) -> Split:
    """Return the split of a composition, from a hash of it; a single operation is in ``train``."""
    if len(composition) == 1:
        return "train"
    digest = hashlib.blake2b("|".join(composition).encode(), digest_size=8).digest()
    return HELD_OUT.get(int.from_bytes(digest, "big") % 10, "train")  # type: ignore[return-value]


@functools.cache
def _followers(kind: Kind, last: bool) -> tuple[list[Operation], list[float]]:
    """Return the operations that take a type, with summed weights: of a pair of types with few the more often each."""
    operations = [o for o in _ALL if o.takes is kind and (last or o.gives is not BOOL)]
    return operations, list(itertools.accumulate(_ALIKE[o.takes, o.gives] ** -0.5 for o in operations))


def random_steps(length: int, rng: random.Random) -> list[Step]:
    """Draw steps whose types agree, no operation twice, that may be no task worth asking."""
    while True:
        steps = [random_step(rng.choice(_ALL), rng)]
        while len(steps) < length and steps[-1].operation.gives is not BOOL:
            last = len(steps) + 1 == length
            operations, weights = _followers(steps[-1].operation.gives, last)
            steps.append(random_step(rng.choices(operations, cum_weights=weights)[0], rng))
        if len(steps) == length == len({step.operation.name for step in steps}):
            return steps


def tasks(split: Split, count: int, seed: int = 0) -> Iterator[Task]:
    """Make tasks of a split.

    Args:
        split: ``train``: one to three operations, and the same task may come again; ``validation`` and ``test``: two
            or three, in compositions that no other split has, and no two prompts are the same.
        count: How many.
        seed: Another one makes other tasks.

    Raises:
        InputError: There is no such split, or the count is negative.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}. Got {split!r}.")
    check_range("count", count, 0)
    return itertools.islice(_endless(split, random.Random(f"tasks {split} {seed}")), count)


def _endless(split: Split, rng: random.Random) -> Iterator[Task]:
    seen: set[str] = set()
    while True:
        steps = random_steps(rng.choice(LENGTHS[split]), rng)
        if split_of([step.operation.name for step in steps]) != split or not is_worth_asking(steps):
            continue
        task = compose(steps, rng)
        if split == "train" or task.prompt not in seen:
            seen.add(task.prompt)
            yield task


def document(task: Task) -> str:
    """Return the text that a model learns from: the function whole."""
    return task.prompt + task.solution


def humaneval_rows(split: Split, count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Yield tasks as rows of HumanEval's jsonl."""
    for number, task in enumerate(tasks(split, count, seed)):
        yield {"task_id": f"builtin-python/{split}/{number}", "prompt": task.prompt, "entry_point": task.entry_point,
               "canonical_solution": task.solution, "test": task.tests}  # fmt: skip


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class ShowConfig:
    """Print tasks with their solutions and tests."""

    split: Split = "train"
    """Of which split."""
    count: int = 3
    """How many, >= 1."""
    seed: int = 0
    """Another one makes other tasks."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("count", self.count, 1)


def show(config: ShowConfig) -> None:
    """Print tasks; see :class:`ShowConfig`."""
    for task in tasks(config.split, config.count, config.seed):
        sys.stdout.write(f"{document(task)}\n{task.tests}\n\n")


if __name__ == "__main__":
    run_commands({"show": show}, module=MODULE, extra="generation")
