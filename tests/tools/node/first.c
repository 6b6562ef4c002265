// A program whose very first instructions are socket() and connect(): no libc, no loader, nothing before them.
// It prints what the server says first, or the errno of what failed. It ends with that errno, with 7 if the server calls
// itself a proxy, with 8 if it is another: an escape. (What a short-lived container prints may get lost, its code does not.)
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

static int has(const char *text, const char *word) {
    for (; *text; text++) {
        int same = 0;
        while (word[same] && text[same] == word[same]) same++;
        if (!word[same]) return 1;
    }
    return 0;
}

void _start(void) {
    // 10.96.0.10:8080
    static const unsigned char address[16] = {2, 0, 8080 >> 8, 8080 & 255, 10, 96, 0, 10};
    static char buffer[4097];
    long fd = call(SYS_socket, 2, 1, 0);
    long result = call(SYS_connect, fd, (long)address, sizeof address);
    if (result < 0) end(-result);
    long length = call(SYS_read, fd, (long)buffer, sizeof buffer - 1);
    if (length < 0) end(-length);
    call(SYS_write, 1, (long)buffer, length);
    call(SYS_exit, has(buffer, "\"role\":\"proxy\"") ? 7 : 8, 0, 0);
}
