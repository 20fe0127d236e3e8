"""What Jinja2 makes of expressions and statements, under transformers' settings for chat templates.

    python tests/parity/jinja_expressions.py

Writes tests/golden/jinja.json: each source with the text that transformers' `render_jinja_template` makes of it, or `fails`. Left
out is what prints Python's own objects (`dict_keys(…)`, `range(0, 3)`, iterators) or is random.
"""

import datetime
import json
import pathlib

import jinja2
import transformers
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOW = 1_700_000_000

MESSAGES = [
    {"role": "system", "content": "é <b> & it's"},
    {"role": "user", "content": " hi\tyou \n"},
    {"role": "assistant", "content": "a", "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": [1.5, None, True], "c": "it's \"x\""}}}]},
    {"role": "tool", "content": "17"},
]
VARIABLES = {
    "word": "Hello, World", "empty": "", "zero": 0, "one": 1, "pi": 3.14159, "big": 12345678901234567890, "none_": None, "yes": True,
    "list_": [3, 1, 2], "words": ["b", "A", "c", "a"], "mixed": [1, "a", None, True, 2.5], "dict_": {"b": 2, "a": 1, "C": [1]}, "nothing": {},
    "people": [{"name": "b", "age": 2}, {"name": "a", "age": 2}, {"name": "c", "age": 1, "of": {"x": 1}}], "text": "one\ntwo  three\n\nfour", "nested": [[1, 2], [3]],
}

EXPRESSIONS = """
word.upper() ~ word.lower() ~ word.title() ~ word.swapcase() ~ word.capitalize()
'hELLO wORLD'.casefold() ~ 'ß'.casefold()
word.count('l') ~ word.count('l', 4) ~ word.count('o', 1, 6)
word.find('o') ~ word.find('o', 5) ~ word.find('zz') ~ word.find('o', 0, 3)
word.rfind('o') ~ word.rfind('o', 0, 6) ~ word.rfind('zz')
word.index('W') ~ word.rindex('o')
word.index('zz')
word.partition(', ')
word.rpartition('o')
word.partition('zz')
word.rpartition('zz')
'a,b,c'.split(',') ~ 'a,b,c'.split(',', 1) ~ 'a,b,c'.rsplit(',', 1) ~ 'a,b,c'.rsplit(',')
'a,b,c'.split(',', maxsplit=1)
'a,b,c'.rsplit(sep=',', maxsplit=1)
' a  b '.split() ~ ' a  b c '.split(None, 1) ~ ' a  b c '.rsplit(None, 1)
'a  b'.split(' ')
''.split() ~ ''.split(',')
'a\\nb\\r\\nc\\n'.splitlines() ~ 'a\\nb\\n'.splitlines(True)
'a\\x0bb\\x0cc\\x1cd'.splitlines()
'a\\u2028b\\x85c'.splitlines()
'x'.center(3) ~ '|' ~ 'x'.center(4, '*') ~ '|' ~ 'xyz'.center(2) ~ '|' ~ 'xx'.center(5, '-')
'x'.ljust(3) ~ '|' ~ 'x'.rjust(3) ~ '|' ~ 'x'.ljust(3, '.') ~ 'x'.rjust(3, '.')
'5'.zfill(3) ~ '-5'.zfill(4) ~ '+5'.zfill(4) ~ 'abc'.zfill(2)
'a\\tb'.expandtabs() ~ '|' ~ 'a\\tb'.expandtabs(4)
'abc'.startswith('a') ~ 'abc'.startswith('b', 1) ~ 'abc'.startswith(('x', 'a')) ~ 'abc'.endswith('c') ~ 'abc'.endswith('b', 0, 2) ~ 'abc'.endswith(('x', 'c'))
'abc'.startswith('')
'aXbX'.replace('X', '-') ~ 'aXbX'.replace('X', '-', 1) ~ 'ab'.replace('', '-')
'  x '.strip() ~ '|' ~ '  x '.lstrip() ~ '|' ~ '  x '.rstrip() ~ '|' ~ 'xxaxx'.strip('x') ~ '|' ~ '\\n\\nx\\n'.strip('\\n')
'x y'.strip(None)
'abc'.removeprefix('a') ~ 'abc'.removesuffix('c') ~ 'abc'.removeprefix('z')
'abc'.isalpha() ~ 'ab1'.isalnum() ~ '12'.isdigit() ~ '1.2'.isdecimal() ~ '½'.isnumeric() ~ ' '.isspace() ~ 'Ab'.istitle() ~ 'ab'.islower() ~ 'AB'.isupper() ~ 'a b'.isidentifier() ~ 'é'.isascii() ~ 'a\\n'.isprintable()
''.isalpha() ~ ''.isdigit() ~ ''.isspace() ~ ''.islower() ~ ''.isascii() ~ ''.isprintable()
'½'.isdigit() ~ '²'.isdigit() ~ '²'.isdecimal() ~ 'Ab Cd'.istitle() ~ 'A1b'.islower()
'-'.join(['a', 'b']) ~ '-'.join('abc') ~ ''.join([])
'-'.join([1, 2])
'{} {1} {a}'.format('x', 'y', a='z')
'{} {} {a}'.format('x', 'y', a='z')
'{:>5}|{:<5}|{:^5}|{:*^7}'.format('a', 'b', 'c', 'd')
'{:05d} {:+d} {:,} {:.2f} {:e} {:x} {:#x} {:b} {:%}'.format(42, 42, 1234567, 3.14159, 12345.678, 255, 255, 5, 0.25)
'{0[a]} {0[b]}'.format(dict_)
'{!r} {!s}'.format('a', 'b')
'{{}}'.format()
'%s-%d' % ('a', 3)
'%s' % 'a' ~ '%s' % 5 ~ '%s' % none
'%5s|%-5s|%05d|%+d|%.2f|%e|%x|%X|%o|%%|%c' % ('a', 'b', 42, 42, 3.14159, 12345.678, 255, 255, 8, 'x')
'%(a)s and %(b)d' % {'a': 'x', 'b': 2}
'%r' % "it's" ~ '%r' % 1.0
'%s' % [1, 'a'] ~ '%s' % {'a': none}
'%s %s' % ('a',)
'%d' % 'a'
'%i' % 3.7 ~ '%d' % true
'%.3s' % 'abcdef' ~ '%*d' % (5, 42)
7 % 3 ~ ' ' ~ -7 % 3 ~ ' ' ~ 7.5 % 2
'abc'.encode('utf-8')
'abc'.translate({97: 'x'})
'a' in 'abc' ~ ('z' not in 'abc')
'a' * 3 ~ 3 * 'b' ~ 'c' * 0 ~ 'd' * -1
'a' 'b'
'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1]
'a' + 1
1 + 1.5 ~ ' ' ~ 3 / 2 ~ ' ' ~ 4 / 2 ~ ' ' ~ 7 // 2 ~ ' ' ~ -7 // 2 ~ ' ' ~ 2 ** 10 ~ ' ' ~ 2 ** -1 ~ ' ' ~ 7.0 // 2
1 / 0
[1, 2] + [3] ~ (1, 2) + (3,)
[1, 2] * 2
[1, 2] == [1, 2] ~ ([1] < [2]) ~ ('a' < 'b') ~ (1 == 1.0) ~ (1 == '1') ~ (none == false) ~ (true == 1) ~ ([] == ())
1 < 2 < 3 ~ (3 > 2 > 1) ~ (1 < 3 < 2)
not yes ~ (yes and zero) ~ (zero or 'x') ~ ('' or none) ~ (empty and x)
'a' if yes else 'b'
'a' if zero
('a' if zero) is undefined
word[0] ~ word[-1] ~ word[1:3] ~ word[:-3] ~ word[::2] ~ word[::-1] ~ word[-3:] ~ word[10:50] ~ word[5:2] ~ word[-100:3]
word[50]
list_[0] ~ list_[-1] ~ list_[1:] ~ list_[::-1] ~ list_[:1] ~ list_[5:]
list_[10] is undefined
(1, 2, 3)[1:] ~ (1,) ~ () ~ (1, 'a')
dict_.a ~ dict_['b'] ~ dict_.get('z') ~ dict_.get('z', 5) ~ dict_.C[0]
dict_.missing ~ '|' ~ (dict_.missing is defined)
dict_.missing.more
x.y
x ~ '|' ~ (x is defined)
x + 1
dict_.keys() | list ~ dict_.values() | list ~ dict_.items() | list
dict_ ~ nothing
dict_.copy() ~ list_.copy()
dict_.update({'x': 1})
dict_.pop('a')
dict_.setdefault('z', 1)
list_.append(4)
list_.pop()
list_.index(2) ~ list_.count(3) ~ [1, 2, 1].index(1, 1)
list_.index(9)
list_.sort()
(1, 2, 1).count(1) ~ (1, 2).index(2)
dict(a=1, b='x') ~ dict([('a', 1)]) ~ dict({'a': 1}, b=2) ~ dict()
dict([['a', 1], ['b', 2]])
dict.fromkeys(['a', 'b'], 1)
range(3) | list ~ range(1, 7, 2) | list ~ range(3, 0, -1) | list
range(5)[1:3] | list
range(5) | length ~ 3 in range(5)
namespace(a=1).a
namespace({'a': 1}).a
joiner() is defined
cycler('a', 'b').next()
raise_exception is callable ~ (word is callable) ~ (range is callable)
'abc' | upper ~ 'ABC' | lower ~ 'abc def' | title ~ 'aBC' | capitalize
"it's o'neil-smith" | title
'x' | center(5) ~ '|' ~ 'x' | center
'a b c' | wordcount ~ 'one two three four' | truncate(9) ~ 'one two three four' | truncate(9, true) ~ 'one two three four' | truncate(9, true, '…') ~ 'one two' | truncate(7, leeway=0)
'one two three four five' | wordwrap(10) | replace('\\n', '/')
text | indent ~ '|' ~ text | indent(2) ~ '|' ~ text | indent(2, true) ~ '|' ~ text | indent(width=2, first=true, blank=true) ~ '|' ~ text | indent('> ')
'abc' | replace('b', 'x') ~ 'aaa' | replace('a', 'b', 2) ~ 5 | replace('5', '6')
' x ' | trim ~ '|' ~ 'xax' | trim('x') ~ '|' ~ 5 | trim ~ none | trim
word | length ~ list_ | length ~ dict_ | length ~ list_ | count
5 | length
x | length
list_ | first ~ list_ | last ~ 'abc' | first ~ 'abc' | last
[] | first is undefined
[] | first
list_ | sort ~ words | sort ~ words | sort(case_sensitive=true) ~ list_ | sort(reverse=true) ~ people | sort(attribute='name') | map(attribute='name') | list
people | sort(attribute='age,name') | map(attribute='name') | list
list_ | reverse | list ~ 'abc' | reverse
list_ | join ~ list_ | join(', ') ~ people | join('-', attribute='name') ~ mixed | join('|')
list_ | sum ~ people | sum(attribute='age') ~ list_ | sum(start=10) ~ [] | sum
list_ | min ~ list_ | max ~ words | min ~ words | max ~ people | max(attribute='age')
['b', 'A'] | min(case_sensitive=true)
[] | min is undefined
[1, 1, 2] | unique | list ~ ['a', 'A', 'b'] | unique | list ~ ['a', 'A'] | unique(true) | list ~ people | unique(attribute='age') | map(attribute='name') | list
words | map('upper') | list ~ people | map(attribute='of.x', default='-') | list ~ list_ | map('string') | map('length') | list ~ words | map('replace', 'a', 'z') | list
people | map(attribute='name') | join
list_ | select('odd') | list ~ list_ | reject('odd') | list ~ list_ | select('gt', 1) | list ~ mixed | select | list ~ mixed | reject | list ~ list_ | select('in', [1, 2]) | list
people | selectattr('age', 'eq', 2) | map(attribute='name') | list ~ people | selectattr('of') | map(attribute='name') | list ~ people | rejectattr('of', 'defined') | map(attribute='name') | list ~ people | selectattr('name', 'equalto', 'a') | list | length
people | selectattr('of.x', '==', 1) | list
people | groupby('age') | map('first') | list
people | groupby('age', default=0) | list | length
people | groupby('missing', default='-') | list | length
list_ | batch(2) | list ~ list_ | batch(2, 'x') | list
list_ | slice(2) | list ~ list_ | slice(2, 'x') | list
dict_ | dictsort ~ dict_ | dictsort(true) ~ dict_ | dictsort(by='value') ~ dict_ | dictsort(reverse=true)
{'b': 2, 'a': 1} | dictsort(false, 'value')
dict_ | items | list ~ x | items | list
dict_ | list ~ 'abc' | list ~ (1, 2) | list
1.5 | int ~ '42' | int ~ 'x' | int ~ 'x' | int(7) ~ '0x1A' | int(base=16) ~ '1.9' | int ~ none | int ~ true | int ~ ' 4 ' | int
'1.5' | float ~ 'x' | float ~ 'x' | float(2.5) ~ 3 | float ~ none | float ~ '1e3' | float
2.5 | round ~ 3.5 | round ~ 3.14159 | round(2) ~ 3.1 | round(method='ceil') ~ 3.9 | round(0, 'floor') ~ 1234 | round(-2) ~ 5 | round
-5 | abs ~ -2.5 | abs
42 | string ~ none | string ~ true | string ~ [1] | string ~ 1.0 | string
x | default('d') ~ '' | default('d') ~ '' | default('d', true) ~ '' | default('d', boolean=true) ~ none | default('d') ~ x | d('e') ~ x | default(default_value='k')
x | default
none | default('d', true)
'<a>' | escape ~ '<a>' | e
'<a>&' | safe
'<b>' | escape | length
'<b>x</b> y' | striptags
'a b/c?é' | urlencode ~ {'a': 'b c'} | urlencode
'{"a": 1}' | tojson ~ dict_ | tojson ~ mixed | tojson ~ word | tojson ~ none | tojson ~ 1.0 | tojson ~ "<é>" | tojson
dict_ | tojson(indent=2)
dict_ | tojson(indent=4, ensure_ascii=false, sort_keys=true)
dict_ | tojson(sort_keys=true) ~ 'é' | tojson(ensure_ascii=true) ~ dict_ | tojson(separators=(',', ':')) ~ '😀' | tojson(true)
nothing | tojson(indent=2) ~ [] | tojson(indent=2) ~ [[]] | tojson(indent=2)
dict_ | tojson(indent='  ')
dict_ | tojson(indent=0)
dict_ | tojson(false, 2)
(1, 2) | tojson
{1: 'a', none: 'b', true: 'c', 1.5: 'd'} | tojson
x | tojson
dict_.items() | tojson
range(2) | list | tojson
list_ | map('string') | tojson
messages[2].tool_calls[0].function.arguments | tojson
messages[2].tool_calls[0].function.arguments
big ~ big + 1 ~ big | tojson
1e100 | tojson ~ 1e-7 | tojson ~ 0.1 + 0.2
1e100 ~ ' ' ~ 1e16 ~ ' ' ~ 123456789.123 ~ ' ' ~ 1e22 ~ ' ' ~ 1.0 ~ ' ' ~ -0.0 ~ ' ' ~ 100000000000000000000.0
[1.0, 1e16, 1e-5, -0.0]
["it's", 'say "x"', "it's \\"both\\"", 'back\\\\slash', 'tab\\t', 'é', '\\x01', '\\u200b', '😀']
{'a': none, 'b': true, 1: [()]}
{'a': 'b'}['a'] ~ {'a': {'b': 1}}.a.b
'%s %s' | format('a', 1) ~ '%05.1f' | format(3.14159) ~ '%(a)s' | format(a='x')
123456 | filesizeformat ~ 123456 | filesizeformat(true) ~ 1 | filesizeformat
people[0] | attr('name') is undefined
dict_ | xmlattr
'http://a.b c' | urlize
none is none ~ (x is none) ~ (x is undefined) ~ (word is string) ~ (1 is number) ~ (true is number) ~ (1 is integer) ~ (true is integer) ~ (1.0 is float) ~ (true is boolean) ~ (dict_ is mapping) ~ (list_ is sequence) ~ (word is sequence) ~ (word is iterable) ~ (5 is iterable) ~ (dict_ is sequence) ~ (x is iterable) ~ (x is sequence)
'abc' is lower ~ 'ABC' is upper ~ ('a' is sameas 'a') ~ (none is sameas none) ~ (true is true) ~ (1 is true) ~ (false is false) ~ (0 is false)
4 is divisibleby 2 ~ 4 is divisibleby(3) ~ 4 is even ~ 3 is odd ~ (1 is eq 1) ~ (1 is ne 2) ~ (2 is gt 1) ~ (1 is lt 2) ~ (1 is ge 1) ~ (1 is le 0) ~ (1 is equalto 1) ~ (1 is greaterthan 0) ~ (1 is lessthan 0) ~ (1 is in [1]) ~ ('a' is in 'abc')
'upper' is filter ~ ('nofilter' is filter) ~ ('odd' is test) ~ ('notest' is test)
'a' is escaped ~ (range(3) is sequence) ~ (range(3) is iterable) ~ ((1, 2) is sequence) ~ (dict_.items() is iterable)
1 is not none ~ not 1 is none ~ (1 is not string)
word is string and word is not mapping
true and not false
1 in [1, 2] ~ (1 not in [1]) ~ ('a' in dict_) ~ ('a' in {'a': 1}) ~ (1 in (1, 2)) ~ (none in [none])
'a' in none_
(list_ | sort)[0] ~ (words | map('upper') | list)[-1] ~ (word | lower)[1:]
word.split(', ')[1].upper().lower()[0:2] | upper
messages[0].content ~ messages[-1]['content'] ~ messages | length ~ messages[1:] | length ~ messages[::-1][0].role
messages | selectattr('role', 'equalto', 'user') | list | length
messages | map(attribute='role') | join(',')
(messages | selectattr('role', 'in', ['user', 'tool']) | list)[-1].role
(messages | rejectattr('role', 'equalto', 'system') | first).content | trim
messages[1].content.strip().split('\\t') | join('+')
messages[2].get('tool_calls') is not none ~ messages[0].get('tool_calls')
'tool_calls' in messages[2] ~ ('tool_calls' in messages[0]) ~ (messages[0].tool_calls is defined)
messages[2].tool_calls[0].function.arguments.items() | list
strftime_now('%Y-%m-%d %H:%M:%S') ~ strftime_now('%d %b %Y') ~ strftime_now('%A %B %a %p %I %y')
strftime_now('%j') ~ strftime_now('%D') ~ strftime_now('%U %W %V %G %u %w %C %g')
strftime_now('%c') ~ '|' ~ strftime_now('%x') ~ '|' ~ strftime_now('%X') ~ '|' ~ strftime_now('%r') ~ '|' ~ strftime_now('%R') ~ '|' ~ strftime_now('%T') ~ '|' ~ strftime_now('%F')
strftime_now('%e %k %l %h %n %t %%')
strftime_now('%-d %-m %-H %-I %-j %-M %-S %-y')
strftime_now('%_d %_m %0e %^a %^B %#Z')
strftime_now('%s') ~ strftime_now('%f') ~ '[' ~ strftime_now('%z') ~ strftime_now('%Z') ~ ']'
strftime_now('%Ey %Od %Om')
strftime_now('%10Y|%5d|%-5d')
strftime_now('no directive é')
raise_exception('stop')
undefined_function()
word | nofilter
word is notest
word.nomethod()
loop is defined
[1, 2, 3,] ~ {'a': 1,} ~ (1, 2,)
[x for x in [1]]
0x1F ~ 0b11 ~ 0o17 ~ 1_000
1.5e3 ~ ' ' ~ 1e3 ~ ' ' ~ 2.
'\\x41\\u00e9\\n\\t\\\\' ~ "\\'" ~ '\\"' ~ '\\101'
'\\d'
'a\\
b'
none ~ None ~ true ~ True ~ false ~ False
caller is defined
(1, 2) == (1, 2) ~ ((1, 2) == [1, 2])
'a' < 1
[3, 'a'] | sort
'abc' | list | length - 1
-1 | abs ~ -one ~ +one ~ not one
2 + 3 * 4 ~ ' ' ~ (2 + 3) * 4 ~ ' ' ~ 2 ** 3 ** 2 ~ ' ' ~ -2 ** 2 ~ ' ' ~ 10 - 3 - 2
'x' ~ 1 + 2 ~ 'y'
1 if 0 else 2 if 0 else 3
word if word is string else 'no'
('a' ~ 'b') | upper ~ 'c'
word|upper|lower|length
list_|join(',')|upper
dict_['a' if yes else 'b']
list_[zero:one + 1]
list_[:none]
nested | map('first') | list ~ nested | sum(start=[])
nested | first | last
word.__class__
dict_.__len__()
list_ is eq [3, 1, 2]
'' is defined and '' is string
'a b' | replace(' ', '_') | upper
(none_ or {}).get('a', 'd')
people | map(attribute='name') | sort | join(', ') | upper
people | tojson
[people[0].name, people[1]['age']] | join
'Ünïcödé'.upper() ~ 'ÜN'.lower() ~ 'ß'.upper() ~ 'ŉ'.title()
'ab\\ncd' | indent(4) | length
'x' | string | list
(1, 2, 3) | sum ~ (1, 2) | join('-') ~ (3, 1) | sort
true | tojson ~ true | string ~ true | int ~ true + 1
'1' + '2' ~ '1' | int + 2
100 | string | length
'a-b_c'.replace('-', '').replace('_', '')
'abc'.__len__()
word.split(',') | map('trim') | list
words | map('lower') | unique | sort | list
words | select('in', 'abc') | list
people | map(attribute='age') | max
{'a': 1}.items() | list | first
dict_ | map('upper') | list
dict_ | length > 2 and dict_ is mapping
list_ | list | tojson
messages | tojson | length > 10
""".strip("\n").replace("'a\\\nb'", "'a\\\x00b'").split("\n")


def separate(line):
    """The expressions that ` ~ ` joins: each is a case of its own."""
    pieces, depth, quote, start = [], 0, None, 0
    for at, character in enumerate(line):
        if quote:
            quote = None if character == quote and line[at - 1] != "\\" else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif depth == 0 and line.startswith(" ~ ", at):
            pieces.append(line[start:at])
            start = at + 3
    return [piece.strip() for piece in [*pieces, line[start:]]]


EXPRESSIONS = list(dict.fromkeys(piece.replace("\x00", "\n") for line in EXPRESSIONS for piece in separate(line) if len(piece) > 3))

STATEMENTS = [
    "{{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1] }}{{ 1 + 2 ~ '' }}",
    "{{ 'a' ~ 'b' | upper ~ 'c' }}{{ 'x' ~ -1 | abs }}{{ 'x' ~ 2 * 3 }}",
    "{% set j = joiner(', ') %}{{ j() }}a{{ j() }}b{{ j() }}c",
    "{% set j = joiner() %}{{ j() }}a{{ j() }}b",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}",
    "{% macro v() %}{{ varargs | length }}{% endmacro %}{{ v(1, 2) }}",
    "{% macro v(a) %}{{ a }}{{ varargs }}{% endmacro %}{{ v(1, 2, 3) }}{{ v(1) }}",
    "{% macro v(a, b=2) %}{{ a }}{{ b }}{% for x in varargs %}[{{ x }}]{% endfor %}{% endmacro %}{{ v(1) }}{{ v(1, 3, 4, none) }}",
    "{% macro v(a) %}{{ a }}{{ kwargs }}{% endmacro %}{{ v(1, b=2) }}",
    "{% macro v(a) %}{{ a }}{% endmacro %}{{ v(1, 2) }}",
    "{% macro v(a) -%}\n x{{ varargs | join }}\n{%- endmacro %}[{{ v(1, 2, 3) }}]",
    "{% macro f(x, y='d') %}{{ x }}-{{ y }}{% endmacro %}{{ f('a') }} {{ f('a', 'b') }} {{ f(y='z', x='w') }} {{ f() }}",
    "{% macro f(x) %}<{{ x }}{{ caller() }}>{% endmacro %}{% call f('a') %}body{% endcall %}",
    "{% macro f() %}{{ caller('p', 'q') }}{% endmacro %}{% call(a, b) f() %}{{ a }}{{ b }}{% endcall %}",
    "{% macro f() %}{% if caller %}y{% else %}n{% endif %}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f.name }}",
    "{% macro f(a, b=a ~ 'x', c=[1, 2]) -%}\n{{ a }}{{ b }}{{ c }}\n{%- endmacro %}{{ f(1) }}{{ f(1, b=none) }}{{ f(1, 2, 3) }}",
    "{% macro f(a, b=a) %}{{ b }}{{ varargs }}{% endmacro %}{{ f(1) }}{{ f(1, 2, 3) }}",
    "{{ messages[1:] | length }}{{ messages[:1] | tojson }}{{ messages[:1] }}{{ messages[1:] is sequence }}{{ messages[:2] | map(attribute='role') | list }}",
    "{% macro f() %}{{ word }}{% endmacro %}{% set word = 'changed' %}{{ f() }}",
    "{% macro f(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}",
    "{% filter upper %}abc{{ 'd' }}{% endfilter %}",
    "{% filter replace('a', 'b') | upper %}aaa{% endfilter %}",
    "{% filter trim %}  x  {% endfilter %}|",
    "{% set x %}a{{ 1 }}{% endset %}{{ x }}{{ x | length }}",
    "{% set x | upper %}abc{% endset %}{{ x }}",
    "{% set x, y = 1, 2 %}{{ x }}{{ y }}",
    "{% set x, y = [1, 2] %}{{ x }}{{ y }}",
    "{% set (x, y) = (1, 2) %}{{ x }}{{ y }}",
    "{% set x = 1, 2 %}{{ x }}",
    "{% set ns = namespace(a=1, b='x') %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns.b }}",
    "{% set ns = namespace() %}{% set ns.x = [] %}{% for i in range(3) %}{% set ns.x = ns.x + [i] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(found=false) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}{% endfor %}{{ ns.found }}",
    "{% set ns = namespace(a=1) %}{% set ns['b'] = 2 %}",
    "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% for i in list_ %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }} {% endfor %}",
    "{% for i in list_ %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}",
    "{% for i in list_ %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }} {% endfor %}",
    "{% for i in [1, 1, 2] %}{{ loop.changed(i) }} {% endfor %}",
    "{% for i in list_ %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for i in [] %}x{% else %}none{% endfor %}",
    "{% for i in x %}x{% else %}none{% endfor %}",
    "{% for i in none_ %}x{% else %}none{% endfor %}",
    "{% for i in 5 %}x{% endfor %}",
    "{% for i in list_ if i > 1 %}{{ i }}{{ loop.index }}{{ loop.length }}{{ loop.last }} {% endfor %}",
    "{% for k, v in dict_.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in dict_ | items %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in dict_ | dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for k in dict_ %}{{ k }}{% endfor %}",
    "{% for c in 'abc' %}{{ c }}.{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in [[1, 2], [3, 4]] %}{{ a }}-{{ b }} {% endfor %}",
    "{% for g, items in people | groupby('age') %}{{ g }}:{{ items | map(attribute='name') | join }} {% endfor %}",
    "{% for g in people | groupby('age') %}{{ g.grouper }}:{{ g.list | length }} {% endfor %}",
    "{% for i in nested recursive %}[{{ loop(i) if i is iterable else i }}]{% endfor %}",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in range(3) %}{% for j in range(3) %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}",
    "{% for a in [1, 2] %}{% for b in [1, 2] %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for m in messages %}{% set outer = loop %}{% for t in m.tool_calls or [] %}{{ outer.index }}{% endfor %}{% endfor %}",
    "{% if x %}a{% elif one %}b{% else %}c{% endif %}",
    "{% if list_ and not nothing %}y{% endif %}{% if '' or [] or {} or 0 or none %}n{% endif %}",
    "{%- if true -%}  a  {%- endif -%}  b",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a\n  {%+ if true %}\n  b\n  {%+ endif %}\nc",
    "a\n  {%- if true %}\n  b\n  {% endif -%}\n  c",
    "a {{- ' b ' -}} c",
    "  {{ 'x' }}\n  {{ 'y' }}\n",
    "{# comment #}a{#- c -#} b\n  {# line #}\nc",
    "a\n{# c #}\nb",
    "a{% raw %}{{ x }}{% endraw %}b",
    "a {%- raw %} {% if %} {% endraw -%} b",
    "{% raw -%}  x  {%- endraw %}",
    "{{ '{{' }}{{ '}}' }}{{ '{%' }}{{ \"%}\" }}",
    "{{ '{% generation %}' }}",
    "{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a':{}} }}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}",
    "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z }}",
    "{% block b %}x{% endblock %}",
    "{% autoescape true %}{{ '<' }}{% endautoescape %}{{ '<' }}",
    "{% do list_ %}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{% trans %}x{% endtrans %}",
    "{% unknown %}",
    "{% if true %}x",
    "{{ 'a'",
    "a\r\nb\rc{{ 'd\r\ne' }}",
    "a\n\n",
    "a\n",
    "\n{% if true %}\n\nx{% endif %}",
    "{% for i in [1, 2] -%}\n  {{ i }}\n{%- endfor %}",
    "{%- for i in [1, 2] %}\n{{ i }}\n{%- endfor -%}\n",
    "{% for i in [1, 2] %}\n  {{ i }}\n{% endfor %}",
    "{% set x = {'a': [1, {'b': 2}]} %}{{ x.a[1].b }}",
    "{% set x = namespace(l=[]) %}{% for m in messages %}{% set x.l = x.l + [m.role] %}{% endfor %}{{ x.l | join(',') }}",
    "{% set content = messages[1]['content'] | trim %}{{ content }}|{{ content.split('\t')[-1] }}",
    "{% set a = 'x' if zero else 'y' %}{{ a }}",
    "{% set a = (zero == 0) and 'x' %}{{ a }}",
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}{{ loop_messages | length }}",
    "{% for message in messages[1:] %}{{ loop.index0 }}{{ messages[loop.index0].role }} {% endfor %}",
    "{% for message in messages %}{% if not loop.last and messages[loop.index].role == 'tool' %}{{ message.role }}{% endif %}{% endfor %}",
    "{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ loop.index0 }}{% endif %}{% endfor %}",
    "{% set ns = namespace(i=messages | length - 1) %}{% for m in messages[::-1] %}{{ ns.i - loop.index0 }}{% endfor %}",
    "{% for m in messages | reverse %}{{ m.role[0] }}{% endfor %}",
    "{% set x = 'a' %}{% set x = x ~ 'b' %}{{ x }}",
    "{% set fmt = '%s!' %}{{ fmt % 'a' }}",
    "{% set n = 7 %}{{ n % 4 }}{{ (n + 1) % 4 }}{{ n*2 % 5 }}",
    "{{ ('%s' % word) ~ ('%d%%' % 5) }}",
    "{{ '%s, %s' % (word | upper, list_[0]) }}{{ '%s' % word.lower() | length }}",
    "{{ '%s' % messages[0].role ~ 'x' }}",
    "{%- macro render(x, depth=0) -%}{%- if x is mapping -%}{%- for k, v in x.items() -%}{{ '  ' * depth ~ k ~ ': ' }}{{ render(v, depth + 1) }};{%- endfor -%}{%- else -%}{{ x }}{%- endif -%}{%- endmacro -%}{{ render(dict_) }}",
    "{% set d = dict(a=1) %}{% set d = dict(d, b=2) %}{{ d }}{{ d.b }}",
    "{% for i in range(0, 10, 3) %}{{ i }}{% endfor %}",
    "{% for x in ['a', 'b'] %}{{ x }}{{ ', ' if not loop.last else '' }}{{ ' and ' if loop.revindex == 2 }}{% endfor %}",
    "{% generation %}x{% endgeneration %}y",
    "{%- generation -%} x {%- endgeneration -%} y",
    "{# {% generation %} #}x",
    "{% set x = [] %}{{ x.append(1) }}{{ x }}",
    "{% set t = messages | map(attribute='content') | list %}{{ t[0] }}{{ t | length }}",
    "{{ messages[0] }}",
    "{{ messages[2] | string }}",
    "{{ {'k': 'v'} | string }}{{ ['a'] | string | length }}",
    "{{ tools }}{{ documents }}{{ add_generation_prompt }}{{ bos_token }}",
    "{% if tools is not none and tools %}x{% else %}y{% endif %}{{ tools is defined }}",
    "{{ messages | map(attribute='tool_calls') | select('defined') | list | length }}",
    "{{ (messages | last).role }}{{ (messages | first)['role'] }}{{ messages | map(attribute='role') | unique | list }}",
    "{{ {} | length }}{{ {}.a }}{{ [][0] }}|",
    "{{ [][0].x }}",
    "{{ {}.a.b }}",
    "{{ none_.x }}",
    "{{ 'a'.x is defined }}",
    "{{ word.0 }}{{ list_.0 }}",
    "{% set x = list_ %}{% set y = x %}{{ y is sameas x }}",
    "{{ range(1, 4) | map('string') | join('') }}{{ range(10) | select('divisibleby', 3) | list }}",
    "{{ [1, 2, 3] | map('multiply', 2) | list }}",
    "{{ ['1', '2'] | map('int') | sum }}{{ ['a ', ' b'] | map('trim') | join }}{{ ['x'] | map('upper') | first }}",
    "{{ [{'a': 1}] | map(attribute='b') | first }}|{{ [{'a': 1}] | map(attribute='b', default=3) | first }}",
    "{{ 'a\nb' | replace('\n', '\\n') }}{{ 'a\\nb' | length }}",
    "line one\n# not a line statement\n## nor a comment\n",
    "{{ \"é\" ~ '\u00e9' ~ '😀'[0] ~ '😀' | length }}",
    "{%set x=1%}{{x}}{%if x%}y{%endif%}",
    "{{ x is defined and x }}{{ (x is defined and x) or 'z' }}",
    "{% for i in range(3) %}{{ i if i is odd }}{% endfor %}",
    "{% if 'a' in ['a'] and 1 not in [2] %}y{% endif %}",
    "{% set x = true %}{% if x is sameas true %}y{% endif %}{% if x == true %}z{% endif %}",
    "{{ 'yes' if word.endswith('World') and word.startswith('Hello') else 'no' }}",
    "{{ word.split(', ')|last }}{{ word.split(', ')|first|lower }}",
    "{{ (word.split(', ')|last).lower() }}",
    "{{ 'text' if part.type == 'text' else 'x' }}",
    "{{ [1,2,3][:2]|join('-') }}{{ 'abc'[1:]|upper }}",
    "{{ dict_|length }}{{ dict_.items()|length }}{{ dict_.keys()|join(',') }}{{ dict_.values()|first }}",
    "{% for key in ['a', 'zz'] if key in dict_ %}{{ dict_[key] }}{% endfor %}",
    "{% set x = 5 %}{% set y = x // 2 %}{% for i in range(y) %}{{ i }}{% endfor %}",
    "{{ '--5'|int }} {{ '1_000'|int }} {{ ' 5 '|int }} {{ '0x1f'|int(base=16) }} {{ '0x1f'|int }} {{ '1e3'|int }} {{ '+5'|int }} {{ 'inf'|int }} {{ '+-5'|int }} {{ '-+5'|int }}",
    "{{ '_1'|int }} {{ '1_'|int }} {{ '1__0'|int }} {{ '0x_1f'|int(base=16) }} {{ '-0x1f'|int(base=16) }} {{ '0b11'|int(base=2) }} {{ '0o17'|int(0, 8) }} {{ '0X1F'|int(0, 16) }} {{ '0b11'|int(base=16) }}",
    "{{ '12'|int(base=0) }} {{ '0x1f'|int(base=0) }} {{ '012'|int(base=0) }} {{ '00'|int(base=0) }} {{ '5'|int(base=1) }} {{ '5'|int(base=37) }} {{ 'z'|int(base=36) }}",
    "{{ '42.9'|int }} {{ '-42.9'|int }} {{ ''|int }} {{ '-'|int }} {{ 'nan'|int }} {{ '1_0.5'|int }} {{ '٣'|int }} {{ ' -٣ '|int(7) }} {{ '- 5'|int }} {{ '0x'|int(3, 16) }}",
    "{{ '--5'|float }} {{ '1_000'|float }} {{ ' 5 '|float }} {{ '0x1f'|float }} {{ '1e3'|float }} {{ '+5'|float }} {{ 'inf'|float }} {{ '+-5'|float }} {{ '-Infinity'|float }} {{ 'nan'|float }} {{ '1_'|float }} {{ '_1'|float }} {{ '1e1_0'|float }} {{ '1._5'|float }} {{ '1_.5'|float }} {{ '.5'|float }} {{ '5.'|float }} {{ '.'|float }} {{ 'e5'|float }} {{ '٣.٥'|float }} {{ none|float }} {{ true|float }} {{ [1]|float(2) }} {{ 'infin'|float }} {{ 'in_f'|float }}",
    "{{ ('1e400')|float }} {{ ('1e400')|int }} {{ '1e30'|int }} {{ ('-' ~ '9'*20)|int }}",
    "{{ ('nan'|float)|int }}",
    "{{ '{}'.format(none) }} {{ '{} {!r} {}'.format([1, 'a', none], 'b', true) }} {{ '{0} {1} {0}'.format(1, 2) }} {{ '{a} {b.role} {b[role]}'.format(a=1, b=messages[0]) }}",
    "{{ '{:>5}|{:<5}|{:^5}|{:*^6}|{:5}|{:5}'.format('é', 'é', 'é', 'é', 'é', 1) }} {{ '{:05}|{:.2}|{:5.1s}|'.format('ab', 'abc', 'xyz') }}",
    "{{ '{:05d}|{:+}|{:,}|{:.2f}|{:e}|{:g}|{:%}|{:x}|{:#x}|{:b}|{:_}|{:08.3f}|{:=+6}'.format(5, 5, 1234567, 3.14159, 12345.678, 0.0001, 0.25, 255, 255, 5, 1234567, 3.14159, 5) }}",
    "{{ '{{}} {{{}}}'.format(1) }} {{ '{:{}}|{:{w}.{p}f}'.format('a', 5, 3.14159, w=8, p=2) }} {{ '{0[0][role]}'.format(messages) }} {{ '{}'.format(not_there) }}| {{ '{:>5}'.format(true) }} {{ '{}'.format(true) }} {{ '{!s:>5}'.format(none) }}",
    "{{ '{}'.format() }}",
    "{{ '{} {1}'.format(1, 2) }}",
    "{{ '{:>5}'.format(none) }}",
    "{{ '{:>5}'.format([1]) }}",
    "{{ '{:d}'.format('a') }}",
    "{{ '{'.format(1) }}",
    "{{ '}'.format(1) }}",
    "{{ '{a}'.format(b=1) }}",
    "{{ '{:=5}'.format('a') }}",
    "{{ '{:q}'.format(1) }}",
    "{{ '{!x}'.format(1) }}",
    "{{ '{:%}|{:.1%}|{:n}|{:G}'.format(0.5, 0.256, 12, 1e-9) }} {{ '{:s}'.format('a') }} {{ '{:c}'.format(65) }} {{ '{:-^9}'.format(1.5) }} {{ '{:.3}'.format(3.14159) }} {{ '{:10.3}|'.format(3.14159) }} {{ '{:,}'.format(1234.5) }} {{ '{:,.2f}'.format(1234567.891) }}",
    "{{ '{a}'.format_map({'a': 1}) }} {{ '{!a}'.format('é') }} {{ '{0.role}'.format(messages[0]) }} {{ '{:}'.format(3) }} {{ '{:>}'.format(3) }}",
    "{{ 'é'.center(5, '*') }}|{{ 'a'.ljust(3) }}|{{ 'a'.rjust(3, '0') }}|{{ '-5'.zfill(5) }}",
    "{{ ['a'] * 3 }} {{ ([1] * 3).index(1) }} {{ ([1] * 3).count(1) }} {{ ([1] + [2]).index(2) }}",
    "{{ [1, 'a'] ~ none ~ {'a': true} }} {{ [1,2] | replace('1', 'x') }}  {{ 'aaa' | replace('a', 'b', 2) }} {{ none | replace('N', 'x') }} {{ 5 | replace(5, 6) }}",
    "{{ [1, messages[0].role] + [2] * 3 }} {{ 1 + 2 * 3 - 4 * 2 ** 2 }} {{ -2 * 3 + 1 }} {{ 'a' * 3 ~ 'b' + 'c' }} {{ 10 // 3 * 2 }} {{ 2 * -3 }} {{ 7 % 4 * 2 }}",
    "{% set ns = namespace(a=1, b=[1]) %}{% set ns.a = ns.a + 1 %}{% set ns.b = ns.b + [ns.a] %}{{ ns.a }} {{ ns.b }} {{ ns.b[-1] }} {{ ns.b | length }}",
    "{%- set x = messages[::-1] -%} {{ x[0].role }} {%- set y = (1, 2) %} {{ y }} {% set a, b = 1, 2 %}{{ a }}{{ b }} {% set c = {'x': messages} %}{{ c.x[0].content }}",
    "{% for k, v in {'a': messages[0].role, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}{% for (a, b) in [(1, messages[0].role), (3, 4)] %}{{ a }}{{ b }}{% endfor %}",
    "{{ 'user' in [messages[0].role, 'x'] }} {{ messages[0].role not in ['a', messages] }} {{ (messages | length) * 2 if messages else 3 * 4 }} {{ [x, 1][1] if false else [messages[0]][0].role }}",
    "{% macro f(a, b=[1, 2] + [3]) %}{{ a }}{{ b }}{% endmacro %}{{ f([messages[0].role]) }}{{ f(a=1 + 2, b='x' * 2) }} {{ dict(a=1, b=2) }} {{ dict([('a', 1), ('a', 2)]) }} {{ dict({'a': 1}, a=3) }}",
    "{{ '%s-%s' % (messages[0].role, 2 * 3) }} {{ ('%s' % 3) * 2 }} {{ messages[0]['role'][1 + 1 - 1:] }} {{ messages[0].content[1 * 1:] }} {{ {'a': 1 + 1, 'b': [2 * 2]} }}",
    "{% set x %}abc{% endset %}{{ x }} {% set x = 'a' if messages else 'b' %}{{ x }} {% if messages[0].role == 'user' and 1 + 1 == 2 %}yes{% endif %} {% set ns = namespace() %}{% set ns.v = none %}{{ ns.v }}{% set ns.v = messages[0] %}{{ ns.v.role }}",
    "{% for i in range(1 + 2) %}{{ i * 2 }}{{ ',' if not loop.last }}{% endfor %}{{ (messages + messages)[1:] | length }} {{ messages + [{'role': 'x'}] == messages }} {{ namespace({'a': 1}, b=2).b }}",
    "{{ not_there|int }}",
    "{{ none|int }} {{ true|int }} {{ [1]|int }} {{ 3.9|int }} {{ -3.9|int }}",
    "{{- '<' + messages[0].role + '>' -}} {{- 2 * 3 -}} x {%- if 1 + 1 == 2 -%} y {%- endif -%} {{- -2 + 3 -}} {{-2 + 3-}} {{ -2 + 3 }} {%- set z =-1 + 2 -%} {{ z }} {%- set w = 'a' + 'b' -%} {{- w -}} {% set q -%} a {%- endset %}{{ q }}",
    "{{- messages[0].role in ['user', messages[0].content] -}} {%- for m in messages + messages -%} {{ m.role }} {%- endfor -%} {{ (1, messages[0].role) -}} |",
    "{%- macro f(a, b=-1 + 2) -%} {{ a + b }} {%- endmacro -%} {{ f(1) }} {{- f(-1, b=-2 * 3) -}}",
]


class Fixed(datetime.datetime):
    """What the templates take for now."""

    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


def rendered(source):
    try:
        return {"text": render_jinja_template([MESSAGES], chat_template=source, **VARIABLES)[0][0]}
    except Exception as error:
        return {"fails": f"{type(error).__name__}: {error}"}


def main():
    chat_template_utils.datetime = Fixed
    sources = [f"{{{{ {expression} }}}}" for expression in EXPRESSIONS] + STATEMENTS
    cases = [{"source": source, **rendered(source)} for source in sources]
    head = {"made_by": "tests/parity/jinja_expressions.py", "jinja2": jinja2.__version__, "transformers": transformers.__version__, "now": NOW,
            "messages": MESSAGES, "variables": VARIABLES}
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    text = json.dumps(head, ensure_ascii=False)[:-1] + f', "cases": [\n{lines}\n]}}\n'
    (ROOT / "tests/golden/jinja.json").write_text(text, encoding="utf-8")
    print(f"{len(cases)} cases, {sum('fails' in case for case in cases)} of them fail")


if __name__ == "__main__":
    main()
