# SPDX-License-Identifier: Apache-2.0
# Answers each connection to port 8080 with the hostname and closes it.
use strict;
use warnings;
use IO::Socket::INET;

my $listener = IO::Socket::INET->new(Listen => 16, LocalPort => 8080, ReuseAddr => 1)
    or die "listen: $!";
chomp(my $name = qx(cat /proc/sys/kernel/hostname));
while (my $connection = $listener->accept) {
    print $connection "$name\n";
    close $connection;
}
