"""What the sandbox has to hold: attacks on the machine, forged results, and programs that never end.

The test runs all of them. So does benchmarks/generation.py, and beside them those that harm nobody without a sandbox.
An attack on the machine answers rightly only where it came through, so that a verdict that passes is one that did.
"""

import contextlib
import os
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_text_generation import code_generator
from gpt_text_generation.code_generator import LAYERS, missing_protection, protections

SQUARE = "assert f(3) == 10\nassert f(5) == 26\n"
ONCE = "assert f(3) == 10\n"  # for attacks on the machine, some of which can't be done twice
# With all layers, and without namespaces, as where they are forbidden
WAYS = [
    way
    for way in (LAYERS, tuple(name for name in LAYERS if name != "namespaces"))
    if not missing_protection(protections(way))
]

PEER = """
import sys
def peer():
    frame = sys._getframe()
    while frame:
        if hasattr(frame.f_locals.get("self"), "answer"):
            return frame.f_locals["self"]
        frame = frame.f_back
"""


ALIKE = """
class Alike:
    def agree(self, *arguments):
        return True
    def give(self, *arguments):
        return Alike()
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = startswith = issubset = agree
    __sub__ = __rsub__ = __add__ = __radd__ = __abs__ = __getitem__ = __round__ = __neg__ = __mod__ = give
    def __hash__(self):
        return 10
    def __len__(self):
        return 3
    def __float__(self):
        return 0.0
"""


def sections(text: str) -> dict[str, tuple[str, str]]:
    """Return name → code and tests: sections begin with ``=== name``, their tests, where not SQUARE, with ``---``."""
    found = {}
    for section in text.replace("@ALIKE\n", ALIKE).replace("@PEER\n", PEER).split("=== ")[1:]:
        name, _, body = section.partition("\n")
        code, _, tests = body.partition("---\n")
        found[name] = code, tests or SQUARE
    return found


# --- Attacks on the machine -------------------------------------------------------------------------------------------

ATTACK = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)

def system_call(number, *arguments):
    if os.uname().machine != "x86_64":
        raise OSError("the numbers are those of x86-64")
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def library():
    return next(path for path in (folder + "/os.py" for folder in sys.path) if os.path.exists(path))

def f(x):
    try:
        done = attack()
    except BaseException as error:
        print(type(error).__name__, error)
        return None
    return x * x + 1 if done else None

"""

# Name → body of ``attack``. @NAME is put in from the host. Bombs are bounded: a sandbox that fails must not take the
# machine with it.
HARMS = {
    name: "def attack():\n" + textwrap.indent(body, "    ")
    for name, (body, _) in sections(r"""
=== fork
if os.fork() == 0:
    os._exit(0)
return True
=== fork bomb
for _ in range(64):
    if os.fork() == 0:
        time.sleep(1)
        os._exit(0)
return True
=== vfork
libc.vfork.restype = int
return system_call(58) >= 0
=== clone
if system_call(56, 17, 0, 0, 0, 0) == 0:
    os._exit(0)
return True
=== clone3
args = (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17)
if system_call(435, ctypes.byref(args), 88) == 0:
    os._exit(0)
return True
=== a new process that shares the memory
return system_call(56, 0x100 | 17, 0, 0, 0, 0) >= 0
=== a program
import subprocess
return subprocess.run(['/bin/true']).returncode == 0
=== a shell
return os.system('true') == 0
=== posix_spawn
return os.posix_spawn('/bin/true', ['true'], {}) > 0
=== exec
os.execv(sys.executable, [sys.executable, '-c', 'pass'])
=== multiprocessing
import multiprocessing
process = multiprocessing.Process(target=print)
process.start()
process.join()
return process.exitcode == 0
=== a daemon
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open('@FOLDER/daemon', 'w').close()
    os._exit(0)
return True
=== killing the parent
os.kill(@PARENT, 9)
return True
=== killing the parent it sees
os.kill(os.getppid(), 9)
return True
=== killing all
os.kill(-1, 0)
return True
=== killing a group
os.killpg(@GROUP, 0)
return True
=== killing a process
os.kill(@VICTIM, 9)
return True
=== killing a thread of another
return system_call(234, @VICTIM, @VICTIM, 9) == 0
=== a signal by a pidfd
import signal
signal.pidfd_send_signal(os.pidfd_open(@VICTIM), 9)
return True
=== a queued signal
info = (ctypes.c_int * 32)(9, 0, -1)
return system_call(129, @VICTIM, 9, ctypes.byref(info)) == 0
=== a signal by the owner of a file
import fcntl
reader, writer = os.pipe()
fcntl.fcntl(reader, 8, @VICTIM)
fcntl.fcntl(reader, 10, 9)
fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
os.write(writer, b'x')
return True
=== ptrace
return system_call(101, 16, @VICTIM, 0, 0) == 0
=== reading memory of another
buffer = ctypes.create_string_buffer(8)
mine = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 8)
its = (ctypes.c_uint64 * 2)(0x400000, 8)
return system_call(310, @VICTIM, ctypes.byref(mine), 1, ctypes.byref(its), 1, 0) >= 0
=== writing memory of another
buffer = ctypes.create_string_buffer(8)
mine = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 8)
its = (ctypes.c_uint64 * 2)(0x400000, 8)
return system_call(311, @VICTIM, ctypes.byref(mine), 1, ctypes.byref(its), 1, 0) >= 0
=== tracing its neighbours
for pid in range(os.getpid() - 3, os.getpid() + 4):
    try:
        system_call(101, 0x4206, pid, 0, 0)
        return True
    except OSError:
        pass
=== a descriptor of another
return system_call(438, system_call(434, @VICTIM, 0), 0, 0) >= 0
=== seeing another process
return os.getpgid(@VICTIM) > 0
=== its own memory as a file
open('/proc/self/mem', 'r+b')
return True
=== limits of another
import resource
resource.prlimit(@VICTIM, resource.RLIMIT_CPU, (1, 1))
return True
=== priority of another
os.setpriority(os.PRIO_PROCESS, @VICTIM, 19)
return True
=== cores of another
os.sched_setaffinity(@VICTIM, {0})
return True
=== raising its limits
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
return True
=== outliving its parent
return libc.prctl(1, 0, 0, 0, 0) == 0
=== many threads
import threading
stop = threading.Event()
threading.stack_size(65536)
threads = [threading.Thread(target=stop.wait, daemon=True) for _ in range(100)]
[thread.start() for thread in threads]
return True
=== memory
return len(bytearray(2 << 30)) > 0
=== memory piece by piece
return len([bytes(1 << 20) for _ in range(2048)]) > 0
=== memory mapped
import mmap
area = mmap.mmap(-1, 2 << 30)
area[::4096] = bytes(len(area[::4096]))
return True
=== memory as a file
return os.memfd_create('x') >= 0
=== memory in pipes
import fcntl
return fcntl.fcntl(os.pipe()[1], 1031, 1 << 20) == 1 << 20
=== memory whose faults it handles
return system_call(323, 1) >= 0
=== memory that is shared
return system_call(29, 0, 1 << 30, 0o1600) >= 0
=== a number without end
return (1 << (1 << 36)) > 0
=== filling the disk
with open('big', 'wb') as file:
    for _ in range(64):
        file.write(bytes(1 << 20))
return True
=== filling the disk with several files
for i in range(24):
    with open(str(i), 'wb') as file:
        file.write(bytes(2 << 20))
time.sleep(0.3)
return True
=== a file of a terabyte
os.truncate(os.open('big', os.O_CREAT | os.O_RDWR), 1 << 40)
return True
=== many files
for i in range(3000):
    open(str(i), 'w').close()
time.sleep(0.3)
return True
=== deep folders
for i in range(3000):
    os.mkdir('d')
    os.chdir('d')
return True
=== many open files
return len([os.dup(1) for _ in range(500)]) == 500
=== descriptors kept in a socket
import socket
return socket.send_fds(socket.socketpair()[0], [b'x'], [1]) == 1
=== files that were left open
import stat
for fd in range(64):
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return True
    except OSError:
        pass
=== tcp
import socket
socket.create_connection(('127.0.0.1', @PORT), 1)
return True
=== tcp out
import socket
s = socket.socket()
s.setblocking(False)
s.connect_ex(('192.0.2.1', 80))
return True
=== udp
import socket
socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))
return True
=== ipv6
import socket
return socket.socket(socket.AF_INET6).fileno() >= 0
=== listening
import socket
s = socket.socket()
s.bind(('127.0.0.1', 0))
s.listen()
return True
=== names
import socket
return bool(socket.getaddrinfo('localhost', 80))
=== a socket file
import socket
s = socket.socket(socket.AF_UNIX)
s.connect('@FOLDER/socket')
return True
=== an abstract socket
import socket
s = socket.socket(socket.AF_UNIX)
s.connect('\0@ABSTRACT')
return True
=== a datagram of a pair
import socket
one, _ = socket.socketpair(type=socket.SOCK_DGRAM)
return True
=== netlink
import socket
return socket.socket(16, socket.SOCK_RAW, 0).fileno() >= 0
=== a raw socket call
return system_call(41, 2, 1, 0) >= 0
=== a socket call of another ABI
return system_call(0x40000000 + 41, 2, 1, 0) >= 0
=== io_uring
return system_call(425, 8, (ctypes.c_uint32 * 30)()) >= 0
=== bpf
return system_call(321, 0, (ctypes.c_uint64 * 16)(2, 4, 4, 1), 128) >= 0
=== keys of the kernel
return system_call(250, 0, -3, 1) >= 0
=== performance counters
return system_call(298, (ctypes.c_uint32 * 32)(1, 112), 0, -1, -1, 0) >= 0
=== secrets of the environment
return 'not for you' in str(os.environ)
=== its own environment
return b'not for you' in open('/proc/self/environ', 'rb').read()
=== environment of the parent
return b'=' in open('/proc/@PARENT/environ', 'rb').read()
=== environment of any process
import glob
return any(open(p, 'rb').read() for p in
           glob.glob('/proc/[0-9]*/environ'))
=== shadow
return bool(open('/etc/shadow').read())
=== users
return bool(open('/etc/passwd').read())
=== home
return bool(os.listdir('@HOME'))
=== a file of the home
return bool(open('@FOLDER/secret').read())
=== the root
return bool(set(os.listdir('/')) & {'home', 'root', 'proc', 'tmp'})
=== out by dots
os.chdir('../' * 20)
return bool(open('etc/passwd').read())
=== out by an old descriptor
for fd in range(3, 64):
    try:
        os.fchdir(fd)
        return True
    except OSError:
        pass
=== out by a link
os.symlink('@FOLDER/secret', 'link')
return bool(open('link').read())
=== out by a hard link
os.link('@FOLDER/secret', 'link')
return True
=== chroot
os.chroot('.')
return True
=== mount
return libc.mount(b'none', b'.', b'tmpfs', 0, None) == 0
=== mount of proc
return libc.mount(b'proc', b'.', b'proc', 0, None) == 0
=== unmount
return libc.umount2(b'.', 2) == 0
=== namespaces of its own
return libc.unshare(0x10000000) == 0
=== a thread with namespaces of its own
return system_call(56, 0x10000000 | 0x10000 | 0x800 | 0x100, 0, 0, 0, 0) >= 0
=== namespaces of another
return libc.setns(os.open('/proc/@PARENT/ns/mnt', 0), 0) == 0
=== a handle of a file
return system_call(303, -100, b'/etc', ctypes.create_string_buffer(200), ctypes.create_string_buffer(8), 0) == 0
=== root again
os.setuid(0)
return os.getuid() == 0 and os.listdir('@HOME')
=== writing a file
open('@FOLDER/secret', 'w').write('changed')
return True
=== cutting a file
os.truncate('@FOLDER/secret', 0)
return True
=== cutting a file by reading
os.open('@FOLDER/secret', os.O_RDONLY | os.O_TRUNC)
return True
=== removing a file
os.remove('@FOLDER/secret')
return True
=== renaming a file
os.rename('@FOLDER/secret', '@FOLDER/other')
return True
=== modes of a file
os.chmod('@FOLDER/secret', 0)
return True
=== owner of a file
os.chown('@FOLDER/secret', 1, 1)
return True
=== times of a file
os.utime('@FOLDER/secret', (0, 0))
return True
=== attributes of a file
os.setxattr('@FOLDER/secret', 'user.x', b'x')
return True
=== a file in the temporary folder
open('/tmp/@ABSTRACT', 'w').close()
return os.path.exists('/tmp/@ABSTRACT')
=== a file without a name in the temporary folder
os.open('/tmp', os.O_TMPFILE | os.O_RDWR)
return True
=== another name for its folder
os.rename(os.getcwd(), os.getcwd() + '-mine')
return True
=== a file in the shared memory
open('/dev/shm/@ABSTRACT', 'w').close()
return True
=== a device
os.mknod('device', 0o20666, os.makedev(1, 1))
return True
=== a named pipe
os.mkfifo('pipe')
return True
=== the runner
open('@RUNNER', 'a').close()
return True
=== Python's library
open(library(), 'a').close()
return True
=== Python's library where it lies
open('@LIBRARY', 'a').close()
return True
=== Python's library as memory
import mmap
area = mmap.mmap(os.open(library(), os.O_RDONLY), 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
area[:1] = area[:1]
return True
=== a lock on Python's library
import fcntl
fcntl.flock(os.open(library(), os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
return True
=== modes of Python's library
file = os.open(library(), os.O_RDONLY)
os.fchmod(file, os.fstat(file).st_mode & 0o777)
return True
=== a program in its folder
open('run', 'w').write('#!/bin/sh')
os.chmod('run', 0o755)
os.execv('./run', ['run'])
=== a kernel module
return system_call(313, 0, b'', 0) == 0
=== the log of the kernel
return system_call(103, 10, 0, 0) > 0
=== settings of the kernel
open('/proc/sys/kernel/core_pattern', 'a').close()
return True
=== typing into the terminal
import fcntl
fcntl.ioctl(os.open('/dev/tty', os.O_RDWR), 0x5412, b'x')
return True
=== the clock
time.clock_settime(time.CLOCK_REALTIME, time.time())
return True
=== the host's name
import socket
socket.sethostname(socket.gethostname())
return True
=== restarting
return system_call(169, 0xfee1dead, 672274793, 0, 0) == 0
=== all disks at once
return system_call(162) == 0
""").items()
}

# Those that harm nobody who runs them without a sandbox: they change nothing but what is made for them
HARMLESS = (
    "fork", "clone", "a program", "a shell", "posix_spawn", "limits of another", "priority of another",
    "cores of another", "seeing another process", "outliving its parent", "many threads", "many open files",
    "memory as a file", "memory in pipes", "tcp", "udp", "ipv6", "listening", "names", "a socket file",
    "an abstract socket", "a datagram of a pair", "netlink", "a raw socket call", "environment of the parent", "users",
    "home", "a file of the home", "the root", "out by dots", "out by a link", "a named pipe",
    "a file without a name in the temporary folder", "modes of Python's library", "a lock on Python's library",
)  # fmt: skip


@dataclass(frozen=True)
class Host:
    """What attacks aim at, and what must be as it was after them.

    Attributes:
        values: What ``@NAME`` stands for in the code of an attack.
        folder: With a secret, and the only place that attacks without a sandbox may change.
        victim: A process.
        connections: Those that listeners of this process accepted.
    """

    values: dict[str, str]
    folder: Path
    victim: subprocess.Popen[bytes]
    connections: list[Any]

    def aimed(self, name: str) -> str:
        """Return the code of an attack on this host."""
        code = ATTACK + HARMS[name]
        for key, value in self.values.items():
            code = code.replace(f"@{key}", value)
        assert not code_generator.syntax_error(code)
        return code

    def state(self) -> dict[str, Any]:
        """Return what no attack may change."""
        secret = self.folder / "secret"
        status = secret.stat()
        return {
            "secret": (secret.read_text(), stat.S_IMODE(status.st_mode), status.st_mtime, status.st_uid),
            "files": sorted(os.listdir(self.folder)),
            "others": [os.path.exists(f"{folder}/{self.values['ABSTRACT']}") for folder in ("/tmp", "/dev/shm")],
            "victim": self.victim.poll(),
            "priority": os.getpriority(os.PRIO_PROCESS, self.victim.pid),
            "library": Path(os.__file__).stat()[:8],
            "runner": Path(code_generator.__file__).stat()[:8],
            "connections": len(self.connections),
            "children": children(),
            "name": socket.gethostname(),
        }


def children() -> list[int]:
    """Return the processes that this one has started and not yet buried."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(path.parent.name))
    return sorted(found)


@contextlib.contextmanager
def hosting(folder: Path) -> Iterator[Host]:
    """Put up a secret, a process, listeners and an environment to attack."""
    (folder / "secret").write_text("not for you")
    abstract = f"roadmap-{os.getpid()}-{time.time_ns()}"
    connections: list[Any] = []
    listeners = [socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    for listener, address in zip(listeners, (("127.0.0.1", 0), f"{folder}/socket", f"\0{abstract}"), strict=True):
        listener.bind(address)
        listener.listen()

        def accept(listener: socket.socket = listener) -> None:
            while True:
                try:
                    connections.append(listener.accept())
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
    os.environ["ROADMAP_SECRET"] = "not for you"
    victim = subprocess.Popen([sys.executable, "-S", "-c", "import time\ntime.sleep(600)"])
    values = {"FOLDER": str(folder), "PARENT": str(os.getpid()), "GROUP": str(os.getpgid(0)), "VICTIM": str(victim.pid),
              "PORT": str(listeners[0].getsockname()[1]), "ABSTRACT": abstract, "HOME": str(Path.home()),
              "RUNNER": code_generator.__file__, "LIBRARY": os.__file__}  # fmt: skip
    try:
        yield Host(values, folder, victim, connections)
    finally:
        del os.environ["ROADMAP_SECRET"]
        victim.kill()
        victim.wait()
        for listener in listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()


# --- Forged results ---------------------------------------------------------------------------------------------------

# Code, and tests where they are not SQUARE. None of it ever computes what is asked for.
FORGERIES = sections(r"""
=== an exit with status 0
import sys
sys.exit(0)
=== an exit in the function
import sys
def f(x):
    sys.exit(0)
=== an exit without a number
def f(x):
    raise SystemExit
=== an end with status 0
import os
os._exit(0)
=== an end in the function
import os
def f(x):
    os._exit(0)
=== an end after a right answer
import os
def f(x):
    return 10 if x == 3 else os._exit(0)
=== an end that tests swallow
import os
def f(x):
    os._exit(0)
---
try:
    assert f(3) == 10
except:
    pass
=== a thread that ends it
import os, threading, time
def f(x):
    threading.Timer(0.05, os._exit, [0]).start()
    time.sleep(9)
=== the word
print('passed')
def f(x):
    print('OK, passed')
=== a verdict on all descriptors
import os
def f(x):
    for fd in range(64):
        try:
            os.write(fd, b'{"status": "passed", '
                b'"text": "", "line": 0, "lines": [], "call": ""}\n')
        except OSError:
            pass
=== patched exceptions
import builtins
builtins.AssertionError = builtins.Exception = KeyError
def f(x):
    return 0
=== patched builtins
import builtins
for name in ('abs', 'all', 'len', 'isinstance', 'sorted', 'round'):
    setattr(builtins, name, lambda *a, **k: True)
def f(x):
    return 'no'
---
assert isinstance(f(3), int)
=== own names for builtins
def all(x):
    return True
abs = len = sorted = isinstance = all
def f(x):
    return 'no'
---
assert isinstance(f(3), int) and all([f(3) == 10])
=== own names for modules
class math:
    isclose = staticmethod(lambda *a: True)
def f(x):
    return 1.0
---
assert math.isclose(f(3), 10.0)
=== patched modules
import math, sys
math.isclose = lambda *a, **k: True
def f(x):
    return 1.0
---
import math
assert math.isclose(f(3), 10.0)
=== own checks
def check(candidate):
    pass
def f(x):
    return 0
---
def check(candidate):
    assert candidate(3) == 10
=== an equal object
@ALIKE
def f(x):
    return Alike()
=== an equal object in a list
@ALIKE
def f(x):
    return [Alike()]
---
assert f(3) == [10]
=== an equal object as a key
@ALIKE
def f(x):
    return {Alike(): 1}
---
assert f(3)[10] == 1
=== an object within any tolerance
@ALIKE
def f(x):
    return Alike()
---
assert abs(f(3.0) - 10.0) < 1e-6
=== an object on the other side
@ALIKE
def f(x):
    return Alike()
---
assert abs(10.0 - f(3.0)) < 1e-6
=== an object that has all
@ALIKE
def f(x):
    return Alike()
---
assert 10 in f(3)
=== an object that begins with all
@ALIKE
def f(x):
    return Alike()
---
assert f(3).startswith('ten')
=== an object that is below all
@ALIKE
def f(x):
    return Alike()
---
assert 0 < f(3) < 1
=== an object that says it is a number
@ALIKE
    __class__ = int
def f(x):
    return Alike()
---
assert isinstance(f(3), int)
=== an equal list
class L(list):
    __eq__ = lambda self, other: True
def f(x):
    return L()
---
assert f(3) == [1]
=== an equal text
class S(str):
    __eq__ = lambda self, other: True
    __hash__ = str.__hash__
def f(x):
    return S()
---
assert f(3) == 'ten'
=== an equal number
class I(int):
    __eq__ = lambda self, other: True
    __hash__ = int.__hash__
def f(x):
    return I(1)
=== an equal fraction
from fractions import Fraction
class Q(Fraction):
    __eq__ = lambda self, other: True
    __hash__ = Fraction.__hash__
def f(x):
    return Q(1, 2)
=== a class in place of the function
@ALIKE
class f:
    def __new__(cls, x):
        return Alike()
=== an exception in place of the function
class f(Exception):
    __eq__ = lambda self, other: True
=== an object of a class of the tests
@ALIKE
one = Alike()
class Box:
    def __new__(cls):
        return one
def f(x):
    return one
---
Box()
assert f(3).startswith('ten')
=== a function under the name of a class
@ALIKE
def f(x):
    return Alike()
Box = f
---
Box(1)
assert f(3).startswith('ten')
=== an object for a function of the tests
@ALIKE
class Box:
    pass
def f(give):
    give(Alike())
---
Box()
found = []
f(found.append)
assert found[0].startswith('ten')
=== names that nobody asked for
@PEER
its = peer()
encode = its.encode
its.encode = lambda value: encode(
    {**value, 'isinstance': lambda *a: True} if type(value) is dict else value)
def f(x):
    return 'no'
---
assert isinstance(f(3), int)
=== an object in place of the function
@ALIKE
f = Alike()
=== an exception of its own
class Odd(BaseException):
    pass
def f(x):
    raise Odd
=== an exception that is none
class Odd(Exception):
    __class__ = int
    args = property(lambda self: 1 / 0)
    __str__ = lambda self: 1 / 0
def f(x):
    raise Odd
=== an exception that ends it
import os
class Odd(Exception):
    def __str__(self):
        os._exit(0)
def f(x):
    raise Odd(Odd())
=== the end of a generator
def f(x):
    raise GeneratorExit
=== the end of an iterator
def f(x):
    raise StopIteration(10)
---
assert all(f(x) == 10 for x in [3])
assert f(3) == 10
=== the end of somebody else's iteration
def f(x):
    raise StopIteration
---
for found in map(f, [3]):
    assert found == 10
assert all(map(lambda x: f(x) == 10, [3]))
=== an interrupt
def f(x):
    raise KeyboardInterrupt
=== no memory
def f(x):
    raise MemoryError
=== tracing
import sys
def trace(frame, event, argument):
    frame.f_locals['result'] = 10
    return trace
sys.settrace(trace)
sys.setprofile(trace)
def f(x):
    return 0
=== a hook for all that happens
import os, sys
def f(x):
    sys.addaudithook(lambda *a: os._exit(0))
    return 0
=== looking for the tests
import gc, sys
def f(x):
    seen = [o for o in gc.get_objects() if isinstance(o, dict)]
    frame = sys._getframe()
    while frame:
        seen += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    found = any('f(3) == 10' in v for d in seen for v in list(d.values()) if isinstance(v, str))
    return x * x + 1 if found else 0
=== looking at the caller
import sys
def f(x):
    frame = sys._getframe(1)
    return frame.f_locals.get('expected', 0)
---
expected = 10
assert f(3) == expected
=== another answer
@PEER
def f(x):
    peer().answer = lambda *a: ['value', ['yours', 0], []]
    return 0
=== a changed argument of another kind
@PEER
def f(x):
    peer().answer = lambda *a: ['value', 0, [[0, 'text']]]
    return 0
---
x = [3]
f(x)
f(x)
assert x == 'text' or f(x) == 10
=== the tests' names by a function
def f(g):
    try:
        g._peer.ask('getattr', g, '__globals__')['f'] = lambda g: 10
    except BaseException as error:
        print(error)
    return 0
---
assert f(lambda: 3) == 10
assert f(lambda: 5) == 10
=== the tests' program by a function
def f(g):
    for name in ('exec', 'eval', 'load', 'setattr', '__import__'):
        try:
            g._peer.ask(name, g, 'f', 10)
            return 10
        except BaseException:
            pass
    return 0
---
assert f(lambda: 3) == 10
=== an object of the tests that there is not
@PEER
def f(x):
    peer().encode = lambda value: ['yours', -1]
    return 0
=== data that builds what it likes
@PEER
def f(x):
    peer().encode = lambda value: ['new', 'os', 'system', 'exit 0']
    return 0
=== garbage instead of an answer
import os
def f(x):
    for fd in range(3, 64):
        try:
            os.write(fd, bytes(range(256)) + b'\n')
        except OSError:
            pass
    return 0
=== brackets instead of an answer
import os
def f(x):
    for fd in range(3, 64):
        try:
            os.write(fd, b'[' * 60000 + b'\n')
        except OSError:
            pass
    return 0
=== answers before questions
import os
for fd in range(3, 64):
    try:
        os.write(fd, b'["value", 10, []]\n' * 9)
    except OSError:
        pass
def f(x):
    return 10
=== a thread that answers
@PEER
import os, threading
def f(x):
    pipe = peer().writer.fileno()
    def answer():
        while True:
            os.write(pipe, b'["value", 10, []]\n')
    threading.Thread(target=answer, daemon=True).start()
    return 0
=== closed descriptors
import os
def f(x):
    os.closerange(0, 64)
    return 0
=== a fraction that is built of an object
class Fraction:
    __module__ = 'fractions'
    __reduce__ = lambda self: (0, (self.__class__.real,))
    @property
    def real(self):
        return 10
def f(x):
    return Fraction()
=== patched json
import json
json.dumps = lambda *a, **k: '["value", 10, []]'
def f(x):
    return 0
=== work at the end
import atexit
atexit.register(print, 'passed')
def f(x):
    return 0
=== no output
import sys
sys.stdout = sys.stderr = None
def f(x):
    return 0
=== a result in itself
def f(x):
    x = []
    x.append(x)
    return x
=== a deep result
def f(x):
    x = []
    for _ in range(100_000):
        x = [x]
    return x
=== a deep result of the tests' depth
def f(x):
    x = []
    for _ in range(700):
        x = [x]
    return x
=== a large result
def f(x):
    return 'x' * (1 << 25)
=== a long result
def f(x):
    return list(range(2_500_000))
=== a large number
def f(x):
    return 1 << (1 << 28)
=== a result without end
import itertools
def f(x):
    return itertools.count()
---
assert list(f(3)) == [10]
=== recursion
def f(x):
    return f(x)
=== recursion without a limit
import sys
sys.setrecursionlimit(1 << 30)
def f(x):
    return f(x) + 1
=== a crash
import ctypes
def f(x):
    ctypes.string_at(1)
=== an abort
import os
def f(x):
    os.abort()
=== its own death
import os
def f(x):
    os.kill(os.getpid(), 9)
""") | {
    "no function": ("x = 3", SQUARE),
    "nothing": ("", SQUARE),
    "sentences": ("Here is the function you asked for.", SQUARE),
    "a null byte": ("def f(x):\n    return 0\0", SQUARE),
    "a thousand brackets": ("x = " + "(" * 1000 + ")" * 1000, SQUARE),
    "a tower of signs": ("x = " + "-" * 100_000 + "1", SQUARE),
    "a surrogate": ("x = '\udc80'", SQUARE),
}
# Those that would eat a machine's memory if nothing limited it
HUNGRY = ("a result without end", "recursion without a limit")
# Code, and what stops it: the clock, or the count of what it prints
ENDLESS = sections(r"""
=== a loop
while True:
    pass
---
timeout
=== sleep
import time
def f(x):
    time.sleep(600)
---
timeout
=== signals that are ignored
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
---
timeout
=== signals that are handled
import signal
for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGXCPU, signal.SIGINT):
    signal.signal(number, lambda *a: None)
def f(x):
    while True:
        pass
---
timeout
=== blocked signals
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True:
    pass
---
timeout
=== its own halt
import os, signal
def f(x):
    os.kill(os.getpid(), signal.SIGSTOP)
---
timeout
=== a pattern that backtracks
import re
def f(x):
    re.match('(a+)+$', 'a' * 60 + 'b')
---
timeout
=== exceptions that are swallowed
def f(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
---
timeout
=== threads that never end
import threading
for _ in range(4):
    threading.Thread(target=threading.Event().wait).start()
threading.Event().wait()
---
timeout
=== questions without end
@PEER
def f(x):
    while True:
        try:
            peer().ask('call', 1)
        except BaseException:
            pass
---
timeout
=== print
while True:
    print('x' * 1000)
---
limit
=== errors
import sys
while True:
    sys.stderr.write('x' * 1000)
---
limit
=== bytes
import os
while True:
    os.write(1, bytes(65536))
---
limit
""")
