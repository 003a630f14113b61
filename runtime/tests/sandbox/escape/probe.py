"""Makes the attempts that it reads on standard input, each in a process of its own, and prints what came of each.

An attempt is an expression, or statements that leave their answer in `answer`. What it answers is a text: the kernel's name
of the error, "allowed", what was seen, or the signal that ended it.
"""
import ctypes, errno, fcntl, json, mmap, os, resource, signal, socket, stat, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def outcome(result):
    return "allowed" if result >= 0 else errno.errorcode[ctypes.get_errno()]

def call(number, *arguments):
    """A system call by its number; integers go as whole registers."""
    ready = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *ready)
    if number in (56, 57, 58) and result == 0:
        os._exit(0)
    return outcome(result)

def tried(action):
    """What the action answers, or the name of the error it ended with."""
    try:
        result = action()
        return "allowed" if result is None else str(result)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def write(path, text="1"):
    def action():
        with open(path, "wb", buffering=0) as file:
            file.write(text.encode())
    return tried(action)

def read(path, size=64):
    """Whether anything can be read: "nothing" is an empty file, as a masked one is."""
    def action():
        with open(path, "rb", buffering=0) as file:
            return "allowed" if file.read(size) else "nothing"
    return tried(action)

def opened(path, flags):
    return tried(lambda: os.close(os.open(path, flags)))

def make(kind, *rest):
    return tried(lambda: socket.socket(kind, *rest).close())

def connect(address, port, kind=socket.SOCK_STREAM):
    def action():
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, kind) as s:
            s.settimeout(5)
            s.connect((address, port))
            s.send(b"x")
    return tried(action)

def connect_unix(name):
    def action():
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(name)
    return tried(action)

def status(name, pid="self"):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(name + ":"):
                return " ".join(line.split()[1:])

def machine_code(code):
    """Runs instructions that return in the accumulator."""
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    place = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(place)()

def sock_filter(*instructions):
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)

def run(*command):
    import subprocess
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    return done.stdout.decode(errors="replace").strip()

def perform(code):
    place = dict(globals())
    try:
        try:
            program = compile(code, "attempt", "eval")
        except SyntaxError:
            exec(compile(code, "attempt", "exec"), place)
            return str(place["answer"])
        return str(eval(program, place))
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    except BaseException as error:
        return f"{type(error).__name__}: {error}"

def main():
    for name, code in json.load(sys.stdin):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            signal.alarm(30)
            os.write(writer, perform(code).encode()[:4096])
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as file:
            text = file.read().decode(errors="replace")
        _, ended = os.waitpid(child, 0)
        if os.WIFSIGNALED(ended):
            text += signal.Signals(os.WTERMSIG(ended)).name
        print(json.dumps([name, text]), flush=True)

main()
