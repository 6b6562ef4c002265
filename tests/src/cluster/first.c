// A program whose very first instructions are socket() and connect(): no libc, no loader, nothing before them.
// It prints what the server says first, or the errno of what failed, and ends with that errno.
#define SYS_read 0
#define SYS_write 1
#define SYS_socket 41
#define SYS_connect 42
#define SYS_exit 60

static long call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static void end(long error) {
    char text[] = "errno 000\n";
    text[6] += error / 100;
    text[7] += error / 10 % 10;
    text[8] += error % 10;
    call(SYS_write, 1, (long)text, 10);
    call(SYS_exit, error, 0, 0);
}

void _start(void) {
    // 10.96.0.10:8080
    static const unsigned char address[16] = {2, 0, 8080 >> 8, 8080 & 255, 10, 96, 0, 10};
    static char buffer[4096];
    long fd = call(SYS_socket, 2, 1, 0);
    long result = call(SYS_connect, fd, (long)address, sizeof address);
    if (result < 0) end(-result);
    long length = call(SYS_read, fd, (long)buffer, sizeof buffer);
    if (length < 0) end(-length);
    call(SYS_write, 1, (long)buffer, length);
    call(SYS_exit, 0, 0, 0);
}
